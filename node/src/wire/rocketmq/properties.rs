//! Properties of a message: `key:value|key:value|`, and what that syntax cannot carry. Used by `session::rocketmq`.

use super::xml::is_text;

/// Pairs of a well-formed list; pieces without exactly one colon or with an empty side are passed over, as by the SDK.
pub fn parse(text: &str) -> Vec<(&str, &str)> {
    let pair = |piece: &'_ str| -> Option<(usize, usize)> {
        let at = piece.find(':')?;
        (at > 0 && at + 1 < piece.len() && !piece[at + 1..].contains(':')).then_some((at, piece.len()))
    };
    text.split('|').filter_map(|piece| pair(piece).map(|(at, end)| (&piece[..at], &piece[at + 1..end]))).collect()
}

/// Appends a pair; both sides must be carriable.
pub fn push(out: &mut String, key: &str, value: &str) {
    out.push_str(key);
    out.push(':');
    out.push_str(value);
    out.push('|');
}

/// Whether a key or a value can stand in the list as it is.
pub fn is_carriable(text: &str) -> bool {
    !text.is_empty() && is_text(text) && !text.contains([':', '|', '\r'])
}

/// Percent-encoded, as far as needed: what an encoded text is made of can always be carried.
pub fn encode(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for byte in text {
        match byte {
            b'-' | b'_' | b'.' | b'~' | b'/' | b' ' | b'=' | b'[' | b']' | b',' => out.push(char::from(*byte)),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(*byte)),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::rocketmq::target::decode;
    use proptest::prelude::*;

    #[test]
    fn pairs_are_read_and_broken_ones_passed_over() {
        assert_eq!(parse("a:1|KEYS:K1|"), [("a", "1"), ("KEYS", "K1")]);
        assert_eq!(parse("a:1|b|:2|c:|d:1:2||e:5"), [("a", "1"), ("e", "5")]);
        assert!(parse("").is_empty());
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut list = String::new();
        push(&mut list, "a", "x y");
        push(&mut list, "KEYS", "中");
        assert_eq!(parse(&list), [("a", "x y"), ("KEYS", "中")]);
        assert!(!is_carriable("") && !is_carriable("12:30") && !is_carriable("a|b") && !is_carriable("\u{1}"));
    }

    proptest! {
        #[test]
        fn what_is_encoded_can_be_carried_and_decoded(text in "\\PC{1,40}") {
            let encoded = encode(text.as_bytes());
            prop_assert!(is_carriable(&encoded));
            prop_assert_eq!(decode(&encoded), text);
        }

        #[test]
        fn any_list_is_survived(text in ".{0,80}") {
            for (key, value) in parse(&text) {
                prop_assert!(!key.is_empty() && !value.is_empty());
            }
        }
    }
}
