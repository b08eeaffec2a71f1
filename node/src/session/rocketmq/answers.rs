//! Answers as documents.

use super::faults::Fault;
use super::message::Shown;
use crate::wire::rocketmq::xml::Document;
use serde::{Deserialize, Serialize};

/// A delivery, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    /// The message.
    pub shown: Shown,
    /// Its receipt handle.
    pub handle: String,
    /// When this group got it first, ms since the epoch.
    pub first_ms: u64,
    /// When it comes again.
    pub next_ms: u64,
    /// How often it was delivered, this time too.
    pub times: u64,
}

/// 201 of a publish; `handle`: of a half message.
pub fn published(id: &str, md5: &str, handle: Option<&str>) -> String {
    let mut document = Document::new("Message");
    document.text("MessageId", id);
    document.text("MessageBodyMD5", md5);
    handle.iter().for_each(|handle| document.text("ReceiptHandle", handle));
    document.end("Message")
}

/// 200 of a consume.
pub fn consumed(messages: &[Handed]) -> String {
    let mut document = Document::new("Messages");
    for Handed { shown, handle, first_ms, next_ms, times } in messages {
        document.open("Message");
        document.text("MessageId", &shown.id);
        document.text("MessageBodyMD5", &shown.md5);
        document.text("MessageBody", &shown.body);
        document.text("ReceiptHandle", handle);
        document.text("PublishTime", &shown.published_ms.unwrap_or(*first_ms).to_string());
        document.text("FirstConsumeTime", &first_ms.to_string());
        document.text("NextConsumeTime", &next_ms.to_string());
        document.text("ConsumedTimes", &times.to_string());
        for (name, text) in [("MessageTag", &shown.tag), ("Properties", &shown.properties)] {
            if !text.is_empty() {
                document.text(name, text);
            }
        }
        document.close("Message");
    }
    document.end("Messages")
}

/// An error.
pub fn fault(fault: &Fault, request: &str, host: &str) -> String {
    let mut document = Document::new("Error");
    document.text("Code", fault.code);
    document.text("Message", &fault.message);
    document.text("RequestId", request);
    document.text("HostId", host);
    document.end("Error")
}

/// 404 of an acknowledgement whose handles are not all good: exactly three elements each.
pub fn unsettled<'h>(handles: impl IntoIterator<Item = &'h str>) -> String {
    let mut document = Document::new("Errors");
    for handle in handles {
        document.open("Error");
        document.text("ErrorCode", "ReceiptHandleError");
        document.text("ErrorMessage", "The receipt handle you provide is not valid.");
        document.text("ReceiptHandle", handle);
        document.close("Error");
    }
    document.end("Errors")
}
