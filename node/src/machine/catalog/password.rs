//! Password hashes as RabbitMQ keeps them: base64(salt ++ sha256(salt ++ password)) with four bytes of salt, so that users can be
//! carried over. Called by the catalog (check) and by whoever makes a user (hash).

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const SALT_BYTES: usize = 4;

/// The hash of a password under a random salt.
pub fn hash_password(password: &[u8], salt: [u8; 4]) -> String {
    let mut raw = salt.to_vec();
    raw.extend_from_slice(&password_digest(&salt, password));
    encode(&raw)
}

/// Whether the password is the one that was hashed; takes the same time wherever they differ.
pub fn password_matches(hash: &str, password: &[u8]) -> bool {
    let Some((salt, wanted)) = split_hash(hash) else { return false };
    password_digest(&salt, password).ct_eq(&wanted).into()
}

/// Salt and digest of a hash; `None`: it is none.
pub fn split_hash(hash: &str) -> Option<([u8; SALT_BYTES], Vec<u8>)> {
    let raw = decode(hash)?;
    let (salt, digest) = raw.split_first_chunk()?;
    Some((*salt, digest.to_vec()))
}

/// What a hash holds of a password.
pub fn password_digest(salt: &[u8], password: &[u8]) -> Vec<u8> {
    Sha256::new().chain_update(salt).chain_update(password).finalize().to_vec()
}

fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().enumerate().fold(0u32, |g, (at, b)| g | u32::from(*b) << (16 - 8 * at));
        for at in 0..4 {
            let symbol = ALPHABET[(group >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= chunk.len() { char::from(symbol) } else { '=' });
        }
    }
    out
}

/// The bytes of standard base64, padded or not; `None`: it is none.
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    decode(text)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let symbols = text.trim_end_matches('=').as_bytes();
    if symbols.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(symbols.len() * 3 / 4);
    for chunk in symbols.chunks(4) {
        let mut group = 0u32;
        for (at, symbol) in chunk.iter().enumerate() {
            let value = ALPHABET.iter().position(|s| s == symbol)? as u32;
            group |= value << (18 - 6 * at);
        }
        out.extend_from_slice(&group.to_be_bytes()[1..chunk.len()]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_of_rabbitmq_matches() {
        // The documentation's worked example: salt 908D C60A, password "test12".
        let hash = "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR";
        assert_eq!(hash_password(b"test12", [0x90, 0x8d, 0xc6, 0x0a]), hash);
        assert!(password_matches(hash, b"test12"));
        assert!(!password_matches(hash, b"test13"));
    }

    #[test]
    fn a_hash_that_is_none_matches_nothing() {
        for hash in ["", "A", "kI3G", "not base64!", "kI3GCqW5"] {
            assert!(!password_matches(hash, b""), "{hash}");
        }
    }

    #[test]
    fn base64_has_standard_padding() {
        for (plain, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(encode(plain.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(plain.as_bytes()));
        }
    }
}
