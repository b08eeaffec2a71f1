//! What a request asks for: `/topics/{topic}/messages?…`. Names are pasted in by clients as they are; tags and instances may be
//! percent-encoded. Used by `session::rocketmq`.

/// A request target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The topic, as it stands there.
    pub topic: String,
    /// `ns`: the instance.
    pub instance: Option<String>,
    /// `consumer`: the group.
    pub group: Option<String>,
    /// `numOfMessages`, as it stands there.
    pub count: Option<String>,
    /// `waitseconds`, likewise.
    pub wait: Option<String>,
    /// `tag`: an expression.
    pub tag: Option<String>,
    /// `trans`: `order`, `pop`, `commit`, `rollback`.
    pub trans: Option<String>,
}

/// What is wrong with a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadTarget {
    /// Not `/topics/{topic}/messages`.
    Path,
    /// An item of the query without a value.
    Item(String),
}

impl Target {
    /// Reads it. Unknown items of the query are left alone, of repeated ones the first counts.
    pub fn parse(text: &str) -> Result<Target, BadTarget> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let topic = path.strip_prefix("/topics/").and_then(|rest| rest.strip_suffix("/messages")).ok_or(BadTarget::Path)?;
        if topic.is_empty() || topic.contains('/') {
            return Err(BadTarget::Path);
        }
        let mut target = Target { topic: topic.to_owned(), ..Target::default() };
        for item in query.split('&').filter(|item| !item.is_empty()) {
            let (name, value) = item.split_once('=').ok_or_else(|| BadTarget::Item(item.to_owned()))?;
            let slot = match name {
                "ns" => &mut target.instance,
                "consumer" => &mut target.group,
                "numOfMessages" => &mut target.count,
                "waitseconds" => &mut target.wait,
                "tag" => &mut target.tag,
                "trans" => &mut target.trans,
                _ => continue,
            };
            let value = if name == "consumer" { value.to_owned() } else { decode(value) };
            slot.get_or_insert(value);
        }
        target.instance = target.instance.filter(|instance| !instance.is_empty());
        Ok(target)
    }
}

/// Percent-decoded where that makes sense and text of it; a percent sign without two digits stands for itself.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, _, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_consume_request_says_all_it_wants() {
        let target =
            Target::parse("/topics/orders/messages?consumer=GID_a&numOfMessages=3&ns=MQ_1&waitseconds=3&tag=TagA%7C%7CTag%20B&trans=order");
        let text = |text: &str| Some(text.to_owned());
        let expected = Target {
            topic: "orders".into(),
            instance: text("MQ_1"),
            group: text("GID_a"),
            count: text("3"),
            wait: text("3"),
            tag: text("TagA||Tag B"),
            trans: text("order"),
        };
        assert_eq!(target, Ok(expected));
    }

    #[test]
    fn names_are_taken_as_they_stand() {
        let target = Target::parse("/topics/%DLQ%GID_a/messages?consumer=%AB&ns=").expect("a target");
        assert_eq!((target.topic.as_str(), target.group.as_deref(), target.instance), ("%DLQ%GID_a", Some("%AB"), None));
    }

    #[test]
    fn other_paths_and_bare_items_are_refused() {
        for wrong in ["", "/", "/topics//messages", "/topics/a/b/messages", "/topics/a", "/topics/a/messages/", "/queues/a/messages"] {
            assert_eq!(Target::parse(wrong), Err(BadTarget::Path), "{wrong}");
        }
        assert_eq!(Target::parse("/topics/a/messages?consumer"), Err(BadTarget::Item("consumer".into())));
    }

    #[test]
    fn percent_signs_that_mean_nothing_stay() {
        assert_eq!(decode("a%20b%2"), "a b%2");
        assert_eq!(decode("100%"), "100%");
        assert_eq!(decode("%ff"), "%ff", "no text");
        assert_eq!(decode("%E4%B8%AD"), "中");
    }

    proptest! {
        #[test]
        fn any_target_is_survived(text in ".{0,80}") {
            let _ = (Target::parse(&text), decode(&text));
        }
    }
}
