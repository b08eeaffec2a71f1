//! What can be wrong with a request, as the service says it: status, code, message. The one place where refusals become codes.

use crate::model::catalog::Refusal;

/// An error document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// HTTP status.
    pub status: u16,
    /// `Code`.
    pub code: &'static str,
    /// `Message`.
    pub message: String,
}

fn fault(status: u16, code: &'static str, message: impl Into<String>) -> Fault {
    Fault { status, code, message: message.into() }
}

impl Fault {
    /// Nothing to consume.
    pub fn no_message() -> Fault {
        fault(404, "MessageNotExist", "Message not exist.")
    }

    /// No such topic, or no such instance.
    pub fn no_topic() -> Fault {
        fault(404, "TopicNotExist", "The topic name you provided is not exist.")
    }

    /// No such group on the topic.
    pub fn no_group() -> Fault {
        fault(404, "SubscriptionNotExist", "The subscription you provided is not exist.")
    }

    /// A number out of its range.
    pub fn range(element: &str, low: u64, high: u64, unit: &str) -> Fault {
        fault(400, "InvalidArgument", format!("The value of {element} should between {low} and {high}{unit}"))
    }

    /// A document without, or with a wrong, element.
    pub fn invalid(element: &str) -> Fault {
        let text = format!("The XML you provided did not validate against our published schema, cause by {element}.");
        fault(400, "InvalidArgument", text)
    }

    /// An argument of the request.
    pub fn argument(text: impl Into<String>) -> Fault {
        fault(400, "InvalidArgument", text)
    }

    /// No XML.
    pub fn malformed() -> Fault {
        fault(400, "MalformedXML", "The XML you provided was not well-formed.")
    }

    /// An acknowledgement of nothing.
    pub fn no_handle() -> Fault {
        fault(400, "MissingReceiptHandle", "ReceiptHandle is required.")
    }

    /// Another path.
    pub fn path() -> Fault {
        fault(400, "InvalidRequestURL", "Http request URL format invalid.")
    }

    /// A broken query.
    pub fn query(item: &str) -> Fault {
        fault(400, "InvalidQueryString", format!("Http request URL contains invalid querystring item \"{item}\"."))
    }

    /// Another method.
    pub fn method() -> Fault {
        fault(405, "MethodNotAllowed", "The method is not one of GET, POST and DELETE.")
    }

    /// The request is not signed.
    pub fn unsigned() -> Fault {
        fault(400, "MissingAuthorizationHeader", "Authorization header is required.")
    }

    /// The signature has another form.
    pub fn bad_authorization() -> Fault {
        fault(400, "InvalidAuthorizationHeader", "The Authorization header format is invalid.")
    }

    /// No date.
    pub fn no_date() -> Fault {
        fault(400, "MissingDateHeader", "Date header is required.")
    }

    /// Another form of date.
    pub fn bad_date() -> Fault {
        fault(400, "InvalidDateHeader", "The Date header format is invalid.")
    }

    /// The document is not the one that was meant.
    pub fn digest() -> Fault {
        fault(400, "InvalidDigest", "The Content-MD5 you specified is invalid.")
    }

    /// Signed too long ago, or too early.
    pub fn expired() -> Fault {
        fault(408, "TimeExpired", "The http request you sent is expired.")
    }

    /// No such key.
    pub fn no_key() -> Fault {
        fault(403, "InvalidAccessKeyId", "The AccessKey Id you provided is not exist.")
    }

    /// Signed with another secret.
    pub fn signature() -> Fault {
        let text = "The request signature we calculated does not match the signature you provided. Check your key and signing method.";
        fault(403, "SignatureDoesNotMatch", text)
    }

    /// Not allowed.
    pub fn denied() -> Fault {
        fault(403, "AccessDenied", "The OwnerId that your Access Key Id associated to is forbidden for this operation.")
    }

    /// Not now.
    pub fn unavailable(why: impl Into<String>) -> Fault {
        fault(503, "ServiceUnavailable", why)
    }

    /// Why the broker refuses.
    pub fn of(refusal: &Refusal) -> Fault {
        match refusal {
            Refusal::NotFound { kind, .. } if kind == "exchange" || kind == "topic" || kind == "vhost" => Fault::no_topic(),
            Refusal::NotFound { .. } | Refusal::Unavailable(_) | Refusal::Locked(_) => Fault::unavailable(refusal.to_string()),
            Refusal::Access(_) | Refusal::NotAllowed(_) => Fault::denied(),
            Refusal::Precondition(text) | Refusal::Inequivalent(text) | Refusal::NotImplemented(text) => {
                fault(400, "InvalidArgument", text.clone())
            }
        }
    }
}
