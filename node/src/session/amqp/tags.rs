//! Consumer tags that the server makes. The seed comes from outside: the session itself is deterministic.

/// Makes unguessable-enough, distinct tags: splitmix64 over the connection's seed.
#[derive(Debug)]
pub(super) struct Tags(u64);

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

impl Tags {
    pub(super) fn new(seed: u64) -> Tags {
        Tags(seed)
    }

    /// `amq.ctag-` and 22 characters.
    pub(super) fn make(&mut self) -> String {
        let mut bits = u128::from(self.next()) << 64 | u128::from(self.next());
        let mut tag = String::from("amq.ctag-");
        for _ in 0..22 {
            tag.push(ALPHABET[(bits & 63) as usize] as char);
            bits >>= 6;
        }
        tag
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
