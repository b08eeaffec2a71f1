//! Command keys and response codes ("Commands" and "Response Codes" of the protocol reference; the last two codes are in
//! rabbit_stream.hrl only).

/// The commands. The highest bit of a key on the wire says that it is a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Key {
    /// A publisher of a stream gets a number.
    DeclarePublisher = 0x01,
    /// Messages.
    Publish = 0x02,
    /// They are stored.
    PublishConfirm = 0x03,
    /// They are not.
    PublishError = 0x04,
    /// The last publishing id of a reference.
    QueryPublisherSequence = 0x05,
    /// The number is free again.
    DeletePublisher = 0x06,
    /// Chunks are wanted.
    Subscribe = 0x07,
    /// A chunk.
    Deliver = 0x08,
    /// More chunks may come.
    Credit = 0x09,
    /// An offset is remembered.
    StoreOffset = 0x0a,
    /// It is asked for.
    QueryOffset = 0x0b,
    /// No more chunks.
    Unsubscribe = 0x0c,
    /// A stream is made.
    Create = 0x0d,
    /// It goes.
    Delete = 0x0e,
    /// Where streams live.
    Metadata = 0x0f,
    /// It has changed.
    MetadataUpdate = 0x10,
    /// Who is who.
    PeerProperties = 0x11,
    /// Ways to log in.
    SaslHandshake = 0x12,
    /// A login.
    SaslAuthenticate = 0x13,
    /// Sizes and heartbeats.
    Tune = 0x14,
    /// A vhost is entered.
    Open = 0x15,
    /// Goodbye.
    Close = 0x16,
    /// A sign of life.
    Heartbeat = 0x17,
    /// Partitions for a routing key.
    Route = 0x18,
    /// All partitions of a super stream.
    Partitions = 0x19,
    /// A consumer of a group becomes active or not.
    ConsumerUpdate = 0x1a,
    /// Which versions of which commands.
    ExchangeCommandVersions = 0x1b,
    /// Figures of a stream.
    StreamStats = 0x1c,
    /// A super stream is made.
    CreateSuperStream = 0x1d,
    /// It goes.
    DeleteSuperStream = 0x1e,
    /// Which offset a specification means.
    ResolveOffsetSpec = 0x1f,
}

impl Key {
    /// All of them, by number.
    pub const ALL: [Key; 31] = [
        Key::DeclarePublisher,
        Key::Publish,
        Key::PublishConfirm,
        Key::PublishError,
        Key::QueryPublisherSequence,
        Key::DeletePublisher,
        Key::Subscribe,
        Key::Deliver,
        Key::Credit,
        Key::StoreOffset,
        Key::QueryOffset,
        Key::Unsubscribe,
        Key::Create,
        Key::Delete,
        Key::Metadata,
        Key::MetadataUpdate,
        Key::PeerProperties,
        Key::SaslHandshake,
        Key::SaslAuthenticate,
        Key::Tune,
        Key::Open,
        Key::Close,
        Key::Heartbeat,
        Key::Route,
        Key::Partitions,
        Key::ConsumerUpdate,
        Key::ExchangeCommandVersions,
        Key::StreamStats,
        Key::CreateSuperStream,
        Key::DeleteSuperStream,
        Key::ResolveOffsetSpec,
    ];

    /// The command of a number, its response bit removed.
    pub fn of(number: u16) -> Option<Key> {
        Key::ALL.get(usize::from(number & !RESPONSE).wrapping_sub(1)).copied()
    }
}

/// The bit of a key that says that this is a response.
pub const RESPONSE: u16 = 0x8000;

/// What a response says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Code {
    /// Done.
    Ok = 0x01,
    /// No stream of that name.
    StreamDoesNotExist = 0x02,
    /// The subscription's number is taken.
    SubscriptionIdAlreadyExists = 0x03,
    /// There is no such subscription.
    SubscriptionIdDoesNotExist = 0x04,
    /// A stream, or a queue, of that name is there.
    StreamAlreadyExists = 0x05,
    /// No leader, no quorum, or gone.
    StreamNotAvailable = 0x06,
    /// Not a mechanism that was offered.
    SaslMechanismNotSupported = 0x07,
    /// Wrong user or password.
    AuthenticationFailure = 0x08,
    /// Not a response of the mechanism.
    SaslError = 0x09,
    /// The mechanism has another question.
    SaslChallenge = 0x0a,
    /// This user may log in from the broker's machine only.
    SaslAuthenticationFailureLoopback = 0x0b,
    /// No such vhost, or no access to it.
    VhostAccessFailure = 0x0c,
    /// Bytes that are no command.
    UnknownFrame = 0x0d,
    /// A frame beyond the agreed size.
    FrameTooLarge = 0x0e,
    /// The broker's fault.
    InternalError = 0x0f,
    /// No permission.
    AccessRefused = 0x10,
    /// An argument that cannot be honoured.
    PreconditionFailed = 0x11,
    /// There is no such publisher.
    PublisherDoesNotExist = 0x12,
    /// No offset is stored.
    NoOffset = 0x13,
    /// A later login with another mechanism.
    SaslCannotChangeMechanism = 0x14,
    /// A later login as another user.
    SaslCannotChangeUsername = 0x15,
}
