//! How `warren ctl` proves that it knows the cluster secret without sending it: it asks for a nonce (`Challenge`) and sends, with
//! each call, `warren-nonce` and `warren-proof` = hex(HMAC-SHA256(secret, "warren-admin-1" 0 nonce method-path)). A nonce is
//! random, good for one call and for a minute. Used by `admin` (server) and `client`.

use hmac::{Hmac, Mac};
use parking_lot::Mutex;
use rand::RngCore;
use sha2::Sha256;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tonic::Status;
use tonic::metadata::MetadataMap;

/// Bytes of a nonce; a client refuses any other length, so that nobody can have it sign something else.
pub const NONCE_BYTES: usize = 32;
/// Metadata key of the nonce, hex.
pub const NONCE_KEY: &str = "warren-nonce";
/// Metadata key of the proof, hex.
pub const PROOF_KEY: &str = "warren-proof";
/// Keeps these proofs apart from every other use of the secret.
const PURPOSE: &[u8] = b"warren-admin-1\0";
/// A stranger may ask for nonces as often as it likes: the oldest goes when there are this many.
const NONCES_MAX: usize = 1024;
const NONCE_LIFE: Duration = Duration::from_secs(60);

type Nonce = [u8; NONCE_BYTES];

fn mac(secret: &[u8], nonce: &[u8], path: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    mac.update(PURPOSE);
    mac.update(nonce);
    mac.update(path.as_bytes());
    mac
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Nonce> {
    let mut bytes = Nonce::default();
    if text.len() != 2 * NONCE_BYTES || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// The client's side: puts the proof for a call of `path` (`/warren.admin.Admin/List`) into its metadata.
///
/// # Errors
/// The nonce is not one.
pub fn prove(metadata: &mut MetadataMap, secret: &[u8], nonce: &[u8], path: &str) -> Result<(), Status> {
    if nonce.len() != NONCE_BYTES {
        return Err(Status::invalid_argument("the node's challenge has the wrong length"));
    }
    let proof = hex(&mac(secret, nonce, path).finalize().into_bytes());
    metadata.insert(NONCE_KEY, hex(nonce).parse().expect("hex is ASCII"));
    metadata.insert(PROOF_KEY, proof.parse().expect("hex is ASCII"));
    Ok(())
}

/// The server's side: hands out nonces and checks proofs.
pub struct Challenger {
    secret: Vec<u8>,
    open: Mutex<VecDeque<(Instant, Nonce)>>,
}

impl Challenger {
    /// For this cluster secret.
    pub fn new(secret: &[u8]) -> Challenger {
        Challenger { secret: secret.to_vec(), open: Mutex::default() }
    }

    /// A new nonce.
    pub fn challenge(&self) -> Nonce {
        let mut nonce = Nonce::default();
        rand::rng().fill_bytes(&mut nonce);
        let mut open = self.open.lock();
        if open.len() == NONCES_MAX {
            open.pop_front();
        }
        open.push_back((Instant::now(), nonce));
        nonce
    }

    /// Check a call of `path`; its nonce is used up, whatever comes out.
    ///
    /// # Errors
    /// `Unauthenticated`, without a word about what was wrong.
    pub fn check(&self, metadata: &MetadataMap, path: &str) -> Result<(), Status> {
        self.accepted(metadata, path).ok_or_else(|| Status::unauthenticated("the cluster secret was not proven"))
    }

    fn accepted(&self, metadata: &MetadataMap, path: &str) -> Option<()> {
        let read = |key| unhex(metadata.get(key)?.to_str().ok()?);
        let (nonce, proof) = (read(NONCE_KEY)?, read(PROOF_KEY)?);
        self.take(&nonce)?;
        mac(&self.secret, &nonce, path).verify_slice(&proof).ok()
    }

    fn take(&self, nonce: &Nonce) -> Option<()> {
        let mut open = self.open.lock();
        open.retain(|(made, _)| made.elapsed() < NONCE_LIFE);
        let at = open.iter().position(|(_, known)| known == nonce)?;
        open.remove(at).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/warren.admin.Admin/List";

    fn proven(secret: &[u8], nonce: &[u8], path: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        prove(&mut metadata, secret, nonce, path).unwrap();
        metadata
    }

    #[test]
    fn the_secret_opens_and_each_nonce_only_once() {
        let server = Challenger::new(b"secret");
        let call = proven(b"secret", &server.challenge(), PATH);
        assert!(server.check(&call, PATH).is_ok());
        assert!(server.check(&call, PATH).is_err(), "a proof cannot be played again");
    }

    #[test]
    fn another_secret_another_method_an_invented_nonce_and_nothing_at_all_are_refused() {
        let server = Challenger::new(b"secret");
        assert!(server.check(&proven(b"Secret", &server.challenge(), PATH), PATH).is_err());
        assert!(server.check(&proven(b"secret", &server.challenge(), PATH), "/warren.admin.Admin/Status").is_err());
        assert!(server.check(&proven(b"secret", &[7; NONCE_BYTES], PATH), PATH).is_err());
        assert!(server.check(&MetadataMap::new(), PATH).is_err());
    }

    #[test]
    fn a_flood_of_challenges_is_bounded() {
        let server = Challenger::new(b"secret");
        assert_eq!((0..3 * NONCES_MAX).map(|_| server.challenge()).collect::<std::collections::HashSet<_>>().len(), 3 * NONCES_MAX);
        assert_eq!(server.open.lock().len(), NONCES_MAX);
    }

    #[test]
    fn a_client_signs_only_nonces_of_the_right_length() {
        assert!(prove(&mut MetadataMap::new(), b"secret", b"short", PATH).is_err());
    }
}
