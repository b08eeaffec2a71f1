//! Who signed a request: `Authorization: MQ id:base64(HMAC-SHA1(secret, what is signed))`. Used by `session::rocketmq`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha1::Sha1;
use std::time::UNIX_EPOCH;

/// The parts of a request that are signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signed {
    /// `GET`, `POST`, `DELETE`.
    pub method: String,
    /// Header content-md5, or nothing.
    pub content_md5: String,
    /// Header content-type, or nothing.
    pub content_type: String,
    /// Header date.
    pub date: String,
    /// Headers that begin with `x-mq-`, names in lower case.
    pub extra: Vec<(String, String)>,
    /// As on the request line.
    pub target: String,
}

impl Signed {
    /// The text that the signature is of.
    pub fn text(&self) -> String {
        let mut extra: Vec<_> = self.extra.iter().collect();
        extra.sort();
        let mut text = [self.method.as_str(), &self.content_md5, &self.content_type, &self.date, ""].join("\n");
        for (name, value) in extra {
            text += &format!("{name}:{value}\n");
        }
        text + &self.target
    }

    /// Whether that is its signature; takes as long for a wrong one.
    pub fn is_by(&self, secret: &str, signature: &str) -> bool {
        let Ok(signature) = STANDARD.decode(signature) else { return false };
        let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("a key may have any length");
        mac.update(self.text().as_bytes());
        mac.verify_slice(&signature).is_ok()
    }
}

/// Key id and signature out of the header.
pub fn credentials(header: &str) -> Option<(&str, &str)> {
    let (id, signature) = header.strip_prefix("MQ ")?.trim().split_once(':')?;
    (!id.is_empty() && !signature.is_empty()).then_some((id, signature))
}

/// A date as `EEE, dd MMM yyyy HH:mm:ss GMT`, in ms since the epoch.
pub fn date_ms(header: &str) -> Option<u64> {
    const LEN: usize = 29;
    let date = (header.len() == LEN && header.ends_with(" GMT")).then(|| httpdate::parse_http_date(header).ok())??;
    date.duration_since(UNIX_EPOCH).ok().and_then(|since| u64::try_from(since.as_millis()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signed(method: &str, content_type: &str, target: &str) -> Signed {
        Signed {
            method: method.into(),
            content_type: content_type.into(),
            date: "Thu, 07 Mar 2019 18:49:58 GMT".into(),
            extra: vec![("x-mq-version".into(), "2015-06-06".into())],
            target: target.into(),
            ..Signed::default()
        }
    }

    /// What the Python SDK computes for these.
    #[test]
    fn signatures_are_those_of_the_sdk() {
        let xml = "text/xml;charset=UTF-8";
        let consume = "/topics/orders/messages?consumer=GID_a&numOfMessages=3&ns=MQ_INST_1_abc&waitseconds=3&tag=TagA%7C%7CTagB";
        for (request, signature) in [
            (signed("POST", xml, "/topics/orders/messages?ns=MQ_INST_1_abc"), "HliheZmFMZqxgj0veNklS0As8dA="),
            (signed("GET", "", consume), "PlIMYQXdc4ula2+AfrdmkKt8ies="),
            (signed("DELETE", xml, "/topics/orders/messages?consumer=GID_a&ns=MQ_INST_1_abc"), "A6li2XzNq/YfzNmPtaWc/0zxXLk="),
        ] {
            assert!(request.is_by("testAccessKeySecret", signature), "{}", request.text());
            assert!(!request.is_by("testAccessKeySecreT", signature));
            assert!(!request.is_by("testAccessKeySecret", "no base64"));
            let other = Signed { target: request.target.clone() + "&tag=x", ..request };
            assert!(!other.is_by("testAccessKeySecret", signature));
        }
    }

    #[test]
    fn extra_headers_are_signed_in_order() {
        let mut one = signed("GET", "", "/");
        one.extra.insert(0, ("x-mq-z".into(), "1".into()));
        let mut two = signed("GET", "", "/");
        two.extra.push(("x-mq-z".into(), "1".into()));
        assert_eq!(one.text(), two.text());
        assert_eq!(one.text(), "GET\n\n\nThu, 07 Mar 2019 18:49:58 GMT\nx-mq-version:2015-06-06\nx-mq-z:1\n/");
    }

    #[test]
    fn credentials_have_two_parts() {
        assert_eq!(credentials("MQ id:sig="), Some(("id", "sig=")));
        for wrong in ["", "MQ", "MQ id", "MQ :x", "MQ id:", "Basic id:sig", "mq id:sig"] {
            assert_eq!(credentials(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn dates_have_one_form() {
        assert_eq!(date_ms("Thu, 07 Mar 2019 18:49:58 GMT"), Some(1_551_984_598_000));
        for wrong in
            ["", "2019-03-07T18:49:58Z", "Thursday, 07-Mar-19 18:49:58 GMT", "Thu Mar  7 18:49:58 2019", "Thu, 07 Mar 2019 18:49:58 UTC"]
        {
            assert_eq!(date_ms(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_headers_are_survived(text in ".{0,60}", date in "[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT") {
            let _ = (credentials(&text), date_ms(&text), date_ms(&date));
            let _ = signed("GET", &text, &text).is_by(&text, &text);
        }
    }
}
