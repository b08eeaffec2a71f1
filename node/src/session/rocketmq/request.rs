//! A request, checked: what its target, method and document ask for. What is signed, and when, is checked here too; who the key belongs to
//! and what is in the catalog is the listener's to find out.

use super::faults::Fault;
use super::message::is_md5_of;
use crate::wire::rocketmq::signature::{Signed, credentials, date_ms};
use crate::wire::rocketmq::target::{BadTarget, Target};
use crate::wire::rocketmq::xml::{self, IllFormed};

/// Bytes of a body, of a whole message.
pub const BODY_BYTES: usize = 4 << 20;
/// Bytes of a request's document: each byte of a body may be an entity, the longest of which is `&quot;`.
pub const DOCUMENT_BYTES: usize = 6 * BODY_BYTES;
/// Bytes of a message's properties, as in RocketMQ.
const PROPERTIES_BYTES: usize = 32 << 10;
/// Characters of a tag.
const TAG_CHARS: usize = 64;
/// Messages of one answer, handles of one acknowledgement.
pub const BATCH_MAX: u32 = 16;
/// Seconds that a request for messages may wait.
pub const WAIT_MAX_S: u64 = 30;
/// Between a client's clock and this one's.
const CLOCK_MS: u64 = 15 * 60 * 1000;

/// A message that a client publishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    /// Its body.
    pub body: String,
    /// Its tag, "" for none.
    pub tag: String,
    /// Its properties as they came.
    pub properties: String,
}

/// What a consumer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Messages.
    Plain,
    /// Messages, a partition's in order.
    Ordered,
    /// Half messages that nobody decided.
    Half,
}

/// What becomes of deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are done with.
    Ack,
    /// The half message is published.
    Commit,
    /// The half message is dropped.
    Rollback,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Publish.
    Publish(Incoming),
    /// Consume.
    Consume {
        /// The group.
        group: String,
        /// So many at most.
        most: u32,
        /// How long to wait for the first, ms.
        wait_ms: u64,
        /// An expression of tags, "" for all.
        tags: String,
        /// How.
        mode: Mode,
    },
    /// Acknowledge, commit, roll back.
    Settle {
        /// The group.
        group: String,
        /// Receipt handles.
        handles: Vec<String>,
        /// Which of it.
        verdict: Verdict,
    },
}

/// The target of a request.
pub fn target(text: &str) -> Result<Target, Fault> {
    Target::parse(text).map_err(|bad| match bad {
        BadTarget::Path => Fault::path(),
        BadTarget::Item(item) => Fault::query(&item),
    })
}

/// The key that a request says it is signed with, and the signature. `now_ms`: what time it is.
pub fn signer<'h>(authorization: Option<&'h str>, signed: &Signed, now_ms: u64) -> Result<(&'h str, &'h str), Fault> {
    let authorization = authorization.ok_or_else(Fault::unsigned)?;
    if signed.date.is_empty() {
        return Err(Fault::no_date());
    }
    let found = credentials(authorization).ok_or_else(Fault::bad_authorization)?;
    let date_ms = date_ms(&signed.date).ok_or_else(Fault::bad_date)?;
    if date_ms.abs_diff(now_ms) > CLOCK_MS {
        return Err(Fault::expired());
    }
    Ok(found)
}

/// A document is what its sender says that it is, if it says so.
pub fn check_digest(content_md5: &str, document: &[u8]) -> Result<(), Fault> {
    if content_md5.is_empty() || is_md5_of(content_md5, document) { Ok(()) } else { Err(Fault::digest()) }
}

/// What a request of this method asks for.
pub fn deed(method: &str, target: &Target, document: &[u8]) -> Result<Deed, Fault> {
    match method {
        "POST" => publish(document).map(Deed::Publish),
        "GET" => consume(target),
        "DELETE" => settle(target, document),
        _ => Err(Fault::method()),
    }
}

fn publish(document: &[u8]) -> Result<Incoming, Fault> {
    let mut flat = xml::read(document).map_err(|IllFormed| Fault::malformed())?;
    if flat.root != "Message" {
        return Err(Fault::invalid("Message"));
    }
    let body = flat.take("MessageBody").ok_or_else(|| Fault::invalid("MessageBody"))?;
    if body.is_empty() || body.len() > BODY_BYTES {
        return Err(Fault::range("MessageBody", 1, BODY_BYTES as u64, " bytes."));
    }
    let tag = flat.take("MessageTag").unwrap_or_default();
    if tag.chars().count() > TAG_CHARS || tag.len() > crate::model::limits::NAME_BYTES {
        return Err(Fault::range("MessageTag", 0, TAG_CHARS as u64, " characters."));
    }
    let properties = flat.take("Properties").unwrap_or_default();
    if properties.len() > PROPERTIES_BYTES {
        return Err(Fault::range("Properties", 0, PROPERTIES_BYTES as u64, " bytes."));
    }
    Ok(Incoming { body, tag, properties })
}

impl Incoming {
    /// Whether it fits: a server may allow less than the protocol.
    pub fn check(&self, max_bytes: u64) -> Result<(), Fault> {
        let bytes = (self.body.len() + self.tag.len() + self.properties.len()) as u64;
        if bytes > max_bytes { Err(Fault::range("Message", 1, max_bytes, " bytes.")) } else { Ok(()) }
    }
}

fn group(target: &Target) -> Result<String, Fault> {
    match &target.group {
        Some(group) if crate::model::rocketmq::is_name(group) => Ok(group.clone()),
        Some(_) | None => Err(Fault::argument("The value of consumer is not valid.")),
    }
}

fn number(text: Option<&String>, range: (u64, u64), (element, unit): (&str, &str)) -> Result<u64, Fault> {
    let (low, high) = range;
    let wrong = || Fault::range(element, low, high, unit);
    text.and_then(|text| text.parse::<u64>().ok()).filter(|n| (low..=high).contains(n)).ok_or_else(wrong)
}

fn consume(target: &Target) -> Result<Deed, Fault> {
    let most = number(target.count.as_ref(), (1, BATCH_MAX.into()), ("numOfMessages", "."))?;
    let wait_s = match &target.wait {
        None => 0,
        wait => number(wait.as_ref(), (0, WAIT_MAX_S), ("waitseconds", " seconds."))?,
    };
    let mode = match target.trans.as_deref() {
        None | Some("") => Mode::Plain,
        Some("order") => Mode::Ordered,
        Some("pop") => Mode::Half,
        Some(_) => return Err(Fault::query("trans")),
    };
    let tags = target.tag.clone().unwrap_or_default();
    Ok(Deed::Consume { group: group(target)?, most: most as u32, wait_ms: wait_s * 1000, tags, mode })
}

fn settle(target: &Target, document: &[u8]) -> Result<Deed, Fault> {
    let verdict = match target.trans.as_deref() {
        None | Some("" | "order") => Verdict::Ack,
        Some("commit") => Verdict::Commit,
        Some("rollback") => Verdict::Rollback,
        Some(_) => return Err(Fault::query("trans")),
    };
    let group = group(target)?;
    if document.is_empty() {
        return Err(Fault::no_handle());
    }
    let flat = xml::read(document).map_err(|IllFormed| Fault::malformed())?;
    if flat.root != "ReceiptHandles" {
        return Err(Fault::invalid("ReceiptHandles"));
    }
    let handles: Vec<String> = flat.elements.into_iter().filter(|(name, _)| name == "ReceiptHandle").map(|(_, handle)| handle).collect();
    match handles.len() {
        0 => Err(Fault::no_handle()),
        n if n > BATCH_MAX as usize => Err(Fault::range("ReceiptHandles", 1, BATCH_MAX.into(), " handles.")),
        _ if handles.iter().any(|handle| handle.trim_ascii().is_empty()) => Err(Fault::no_handle()),
        _ => Ok(Deed::Settle { group, handles, verdict }),
    }
}

/// Which messages a consumer wants: `TagA||TagB`; the others are passed over for its group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags(Vec<String>);

impl Tags {
    /// Of an expression; `*` and nothing at all are everything.
    pub fn parse(expression: &str) -> Tags {
        let words: Vec<String> = expression.split("||").map(|tag| tag.trim().to_owned()).filter(|tag| !tag.is_empty()).collect();
        if words.iter().any(|tag| tag == "*") { Tags::default() } else { Tags(words) }
    }

    /// Whether a message with this tag is wanted.
    pub fn wants(&self, tag: &[u8]) -> bool {
        self.0.is_empty() || self.0.iter().any(|known| known.as_bytes() == tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &str, query: &str, document: &str) -> Result<Deed, Fault> {
        deed(method, &target(&format!("/topics/t/messages?{query}"))?, document.as_bytes())
    }

    fn code(method: &str, query: &str, document: &str) -> &'static str {
        asked(method, query, document).expect_err("refused").code
    }

    #[test]
    fn numbers_have_their_ranges() {
        for query in
            ["consumer=g", "consumer=g&numOfMessages=0", "consumer=g&numOfMessages=17", "consumer=g&numOfMessages=1&waitseconds=31"]
        {
            assert_eq!(code("GET", query, ""), "InvalidArgument", "{query}");
        }
        let all = asked("GET", "consumer=g&numOfMessages=16&waitseconds=30&trans=order&tag=a", "");
        let expected = Deed::Consume { group: "g".into(), most: 16, wait_ms: 30_000, tags: "a".into(), mode: Mode::Ordered };
        assert_eq!(all, Ok(expected));
        assert_eq!(code("GET", "numOfMessages=1", ""), "InvalidArgument", "no group");
        assert_eq!(code("GET", "consumer=g&numOfMessages=1&trans=x", ""), "InvalidQueryString");
        assert_eq!(code("PUT", "", ""), "MethodNotAllowed");
    }

    #[test]
    fn a_publish_needs_a_body_of_text() {
        let message = |inner: &str| format!("<Message>{inner}</Message>");
        assert_eq!(code("POST", "", "x"), "MalformedXML");
        assert_eq!(code("POST", "", "<Messages/>"), "InvalidArgument");
        assert_eq!(code("POST", "", &message("")), "InvalidArgument");
        assert_eq!(code("POST", "", &message("<MessageBody/>")), "InvalidArgument");
        let long = message(&format!("<MessageBody>b</MessageBody><MessageTag>{}</MessageTag>", "t".repeat(65)));
        assert_eq!(code("POST", "", &long), "InvalidArgument");
        let rich = |bytes: usize| message(&format!("<MessageBody>b</MessageBody><Properties>{}</Properties>", "p".repeat(bytes)));
        assert!(asked("POST", "", &rich(PROPERTIES_BYTES)).is_ok());
        assert_eq!(code("POST", "", &rich(PROPERTIES_BYTES + 1)), "InvalidArgument");
        let all = Incoming { body: "body".into(), tag: "tag".into(), properties: "a:1|".into() };
        assert_eq!((all.check(11), all.check(10).expect_err("too large").code), (Ok(()), "InvalidArgument"));
        let fine = asked("POST", "", &message("<MessageTag>t</MessageTag><MessageBody>b</MessageBody>"));
        assert_eq!(fine, Ok(Deed::Publish(Incoming { body: "b".into(), tag: "t".into(), properties: String::new() })));
    }

    #[test]
    fn a_document_is_what_its_digest_says() {
        // The last is base64 of the digits.
        let hello = ["XUFAKrxLKna5cZ2REBfFkg==", "5d41402abc4b2a76b9719d911017c592", "NWQ0MTQwMmFiYzRiMmE3NmI5NzE5ZDkxMTAxN2M1OTI="];
        for digest in hello.into_iter().chain([""]) {
            assert_eq!(check_digest(digest, b"hello"), Ok(()), "{digest}");
        }
        for digest in hello.into_iter().chain(["x"]) {
            assert_eq!(check_digest(digest, b"hallo").expect_err(digest).code, "InvalidDigest");
        }
    }

    #[test]
    fn an_acknowledgement_names_one_to_sixteen_handles() {
        let handles = |n: usize| format!("<ReceiptHandles>{}</ReceiptHandles>", "<ReceiptHandle>h</ReceiptHandle>".repeat(n));
        assert_eq!(code("DELETE", "consumer=g", ""), "MissingReceiptHandle");
        assert_eq!(code("DELETE", "consumer=g", &handles(0)), "MissingReceiptHandle");
        assert_eq!(code("DELETE", "consumer=g", &handles(17)), "InvalidArgument");
        assert_eq!(
            code("DELETE", "consumer=g", "<ReceiptHandles><ReceiptHandle> </ReceiptHandle></ReceiptHandles>"),
            "MissingReceiptHandle"
        );
        let verdict = |query: &str| match asked("DELETE", query, &handles(16)) {
            Ok(Deed::Settle { verdict, handles, .. }) => (verdict, handles.len()),
            other => panic!("{other:?}"),
        };
        assert_eq!(verdict("consumer=g"), (Verdict::Ack, 16));
        assert_eq!(verdict("consumer=g&trans=commit").0, Verdict::Commit);
        assert_eq!(verdict("consumer=g&trans=rollback").0, Verdict::Rollback);
    }

    #[test]
    fn an_expression_of_tags_picks_messages() {
        let tags = Tags::parse("TagA || tag 1");
        assert!(tags.wants(b"TagA") && tags.wants(b"tag 1") && !tags.wants(b"TagB") && !tags.wants(b""));
        assert!(Tags::parse("").wants(b"x") && Tags::parse("*").wants(b"x") && Tags::parse("a||*").wants(b""));
    }

    #[test]
    fn a_request_is_signed_now() {
        let signed = |date: &str| Signed { date: date.into(), ..Signed::default() };
        let (date, now_ms) = ("Thu, 07 Mar 2019 18:49:58 GMT", 1_551_984_598_000);
        let code = |authorization, date, now_ms| signer(authorization, &signed(date), now_ms).expect_err("refused").code;
        assert_eq!(code(None, date, now_ms), "MissingAuthorizationHeader");
        assert_eq!(code(Some("MQ a:b"), "", now_ms), "MissingDateHeader");
        assert_eq!(code(Some("a:b"), date, now_ms), "InvalidAuthorizationHeader");
        assert_eq!(code(Some("MQ a:b"), "yesterday", now_ms), "InvalidDateHeader");
        assert_eq!(code(Some("MQ a:b"), date, now_ms + CLOCK_MS + 1), "TimeExpired");
        assert_eq!(signer(Some("MQ a:b"), &signed(date), now_ms - CLOCK_MS), Ok(("a", "b")));
    }
}
