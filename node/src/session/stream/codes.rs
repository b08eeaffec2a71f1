//! Response codes for what the edge says: the one place where failures become numbers of the stream protocol.

use crate::model::stream_step::Failure;
use crate::wire::stream::Code;

/// The code of a failure, as RabbitMQ answers.
pub(super) fn of(failure: Failure) -> Code {
    match failure {
        Failure::Missing => Code::StreamDoesNotExist,
        Failure::Exists => Code::StreamAlreadyExists,
        Failure::Refused => Code::AccessRefused,
        Failure::Precondition => Code::PreconditionFailed,
        Failure::Unavailable => Code::StreamNotAvailable,
        Failure::NoOffset => Code::NoOffset,
        Failure::Internal => Code::InternalError,
    }
}
