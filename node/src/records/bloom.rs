//! Which filter values a chunk may have: a small Bloom filter, made where chunks are made and asked where they are read. As large as
//! RabbitMQ's and with its rules; the hash is our own, no client sees it.

/// Bytes of a filter that nobody chose (`x-stream-filter-size-bytes`).
pub const FILTER_BYTES_DEFAULT: u8 = 16;
/// The least.
pub const FILTER_BYTES_MIN: u8 = 16;
/// The most.
pub const FILTER_BYTES_MAX: u8 = u8::MAX;

/// The filter of a chunk in the making.
#[derive(Clone, Debug)]
pub struct Bloom {
    bits: Vec<u8>,
    size: u8,
    /// Messages without a value: they count only when others have one.
    unfiltered: bool,
}

impl Bloom {
    /// Of a chunk without messages; a size out of bounds is moved to the next bound.
    pub fn new(size: u8) -> Bloom {
        Bloom { bits: Vec::new(), size: size.max(FILTER_BYTES_MIN), unfiltered: false }
    }

    /// A message with this value; an empty one is none.
    pub fn insert(&mut self, value: &[u8]) {
        if value.is_empty() {
            self.unfiltered = true;
            return;
        }
        self.bits.resize(self.size.into(), 0);
        for position in positions(hash(value), self.bits.len()) {
            self.bits[position / 8] |= 0x80 >> (position % 8);
        }
    }

    /// The filter; empty when no message has a value. Leaves that of a chunk without messages.
    pub fn take(&mut self) -> Vec<u8> {
        let mut bits = std::mem::take(&mut self.bits);
        if std::mem::take(&mut self.unfiltered)
            && let Some(first) = bits.first_mut()
        {
            *first |= 0x80;
        }
        bits
    }
}

/// What a reader wants: chunks that may have one of these values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matcher {
    hashes: Vec<u64>,
    unfiltered: bool,
}

impl Matcher {
    /// Values, and whether messages without one are wanted too.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>, unfiltered: bool) -> Matcher {
        let (mut hashes, mut unfiltered) = (Vec::new(), unfiltered);
        for value in values {
            match value.is_empty() {
                true => unfiltered = true,
                false => hashes.push(hash(value)),
            }
        }
        Matcher { hashes, unfiltered }
    }

    /// Whether a chunk with this filter may have what is wanted.
    pub fn matches(&self, filter: &[u8]) -> bool {
        let is_set = |position: usize| filter[position / 8] & 0x80 >> (position % 8) != 0;
        match filter.is_empty() {
            true => self.unfiltered,
            false => self.unfiltered && is_set(0) || self.hashes.iter().any(|hash| positions(*hash, filter.len()).into_iter().all(is_set)),
        }
    }
}

/// Bit 0 stands for messages without a value.
fn positions(hash: u64, bytes: usize) -> [usize; 2] {
    let bits = bytes as u64 * 8 - 1;
    [hash >> 32, hash & 0xffff_ffff].map(|half| (half % bits + 1) as usize)
}

/// FNV-1a with a finisher: the halves of its result must differ from each other. Part of the stored format.
fn hash(value: &[u8]) -> u64 {
    let mut hash = value.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    for factor in [0xff51_afd7_ed55_8ccd_u64, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter(values: &[&[u8]], size: u8) -> Vec<u8> {
        let mut bloom = Bloom::new(size);
        values.iter().for_each(|value| bloom.insert(value));
        bloom.take()
    }

    #[test]
    fn messages_without_a_value_are_for_those_who_want_them() {
        let wants = |values: &[&[u8]], unfiltered| Matcher::new(values.iter().copied(), unfiltered);
        assert_eq!(filter(&[b"", b""], 16), b"");
        assert!(!wants(&[b"a"], false).matches(b""));
        assert!(wants(&[b"a"], true).matches(b""));
        let mixed = filter(&[b"", b"b"], 16);
        assert!(wants(&[b"a"], true).matches(&mixed));
        assert!(!wants(&[b"a"], false).matches(&mixed));
        assert!(wants(&[b"b"], false).matches(&mixed));
        assert!(!wants(&[b"a"], true).matches(&filter(&[b"b"], 16)), "b sets no bit of a, and bit 0 is for none");
    }

    /// The hash is in stored chunks: another one would hide messages.
    #[test]
    fn the_bits_of_a_value_do_not_change() {
        assert_eq!(hash(b"invoices"), 1271343091932067093);
        assert_eq!(filter(&[b"invoices"], 16), [0, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn most_chunks_without_a_value_are_passed_over() {
        let values: Vec<String> = (0..1000).map(|n| format!("customer-{n}")).collect();
        let hits = values.iter().filter(|v| Matcher::new([v.as_bytes()], false).matches(&filter(&[b"x", b"y", b"z"], 16))).count();
        assert!(hits < 20, "{hits} of 1000");
    }

    proptest! {
        #[test]
        fn what_is_in_a_chunk_is_always_found(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 1..40),
            size in any::<u8>(),
            unfiltered in any::<bool>(),
        ) {
            let mut bloom = Bloom::new(size);
            values.iter().for_each(|value| bloom.insert(value));
            if unfiltered {
                bloom.insert(b"");
            }
            let filter = bloom.take();
            prop_assert!((16..=255).contains(&filter.len()));
            for value in &values {
                prop_assert!(Matcher::new([value.as_slice()], false).matches(&filter));
            }
            prop_assert_eq!(Matcher::new([], true).matches(&filter), unfiltered);
            prop_assert_eq!(bloom.take(), Vec::<u8>::new(), "nothing is left of the chunk before");
        }

        #[test]
        fn any_filter_is_survived(filter in prop::collection::vec(any::<u8>(), 0..300), value in prop::collection::vec(any::<u8>(), 0..9)) {
            Matcher::new([value.as_slice()], false).matches(&filter);
        }
    }
}
