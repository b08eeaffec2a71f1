use super::client::{Request, Versions};
use super::server::{Answer, Broker, ChunkHead, StreamMetadata};
use super::*;
use crate::model::Offset;
use crate::model::stored::{Lent, Place};
use crate::model::stream::StreamChunk;
use crate::wire::rope::Front;
use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use std::sync::Arc;

fn encoded(said: &FromClient<'_>) -> Bytes {
    let mut out = BytesMut::new();
    said.encode(&mut out);
    let content = frame::next(&mut out, u32::MAX).expect("its size is right").expect("whole");
    assert!(out.is_empty());
    content
}

/// A rope's frames, one by one.
fn frames(out: &mut Output) -> Vec<Bytes> {
    let mut bytes = BytesMut::from(out.take());
    let frames = std::iter::from_fn(|| frame::next(&mut bytes, u32::MAX).expect("no limit")).collect();
    assert!(bytes.is_empty(), "nothing but frames");
    frames
}

#[test]
fn a_declare_publisher_has_the_bytes_of_the_reference() {
    let request = Request::DeclarePublisher { publisher: 7, reference: "r1", stream: "s" };
    let mut out = BytesMut::new();
    FromClient::Request { correlation: 9, request: request.clone() }.encode(&mut out);
    let golden = b"\0\0\0\x10\0\x01\0\x01\0\0\0\x09\x07\0\x02r1\0\x01s";
    assert_eq!(&out[..], golden);
    assert_eq!(FromClient::decode(&golden[4..]), Ok(FromClient::Request { correlation: 9, request }));
}

#[test]
fn a_null_reference_is_an_empty_one() {
    let said = FromClient::decode(b"\0\x01\0\x01\0\0\0\x09\x07\xff\xff\0\x01s").expect("a request");
    assert_eq!(
        said,
        FromClient::Request { correlation: 9, request: Request::DeclarePublisher { publisher: 7, reference: "", stream: "s" } }
    );
}

#[test]
fn a_subscribe_without_properties_is_one() {
    let content = b"\0\x07\0\x01\0\0\0\x01\x02\0\x01s\0\x04\0\0\0\0\0\0\0\x2a\0\x0a";
    let request = Request::Subscribe { subscription: 2, stream: "s", offset: OffsetSpec::Offset(42), credit: 10, properties: Vec::new() };
    assert_eq!(FromClient::decode(content), Ok(FromClient::Request { correlation: 1, request }));
}

#[test]
fn a_publish_holds_messages_and_batches() {
    let mut content = BytesMut::from(&b"\0\x02\0\x01\x05\0\0\0\x02"[..]);
    content.put_slice(b"\0\0\0\0\0\0\0\x01\0\0\0\x02hi");
    content.put_slice(b"\0\0\0\0\0\0\0\x02\x90\0\x03\0\0\0\x20\0\0\0\x04zzzz");
    let Ok(FromClient::Publish { publisher: 5, messages }) = FromClient::decode(&content) else { panic!("a Publish") };
    let messages: Vec<_> = messages.map(|m| m.expect("whole")).collect();
    assert_eq!(messages[0], Message { publishing_id: 1, filter: None, entry: Entry::Simple, bytes: b"\0\0\0\x02hi" });
    let entry = Entry::Batch { compression: 1, records: 3, uncompressed_bytes: 32, stored_bytes: 4 };
    assert_eq!(messages[1], Message { publishing_id: 2, filter: None, entry, bytes: b"\x90\0\x03\0\0\0\x20\0\0\0\x04zzzz" });
    assert_eq!((messages.len(), messages[1].entry.records()), (2, 3));
}

#[test]
fn in_version_2_messages_have_filter_values_or_none() {
    let mut content = BytesMut::from(&b"\0\x02\0\x02\x05\0\0\0\x03"[..]);
    content.put_slice(b"\0\0\0\0\0\0\0\x01\0\x02eu\0\0\0\x02hi");
    content.put_slice(b"\0\0\0\0\0\0\0\x02\xff\xff\0\0\0\x00");
    content.put_slice(b"\0\0\0\0\0\0\0\x03\0\x02");
    let Ok(FromClient::Publish { messages, .. }) = FromClient::decode(&content) else { panic!("a Publish") };
    let messages: Vec<_> = messages.collect();
    assert_eq!(messages[0].expect("whole").filter, Some(&b"eu"[..]));
    assert_eq!(messages[1].expect("whole").filter, None);
    assert!(messages[2].is_err() && messages.len() == 3, "one that is cut off is said once");
}

#[test]
fn what_is_no_command_is_malformed() {
    for content in
        [&b""[..], b"\0", b"\0\x20\0\x01", b"\0\x00\0\x01", b"\0\x01\0\x02\0\0\0\x01\0\0\0\0\0", b"\x80\x01\0\x01\0\0\0\x01\0\x01"]
    {
        assert!(FromClient::decode(content).is_err(), "{content:?}");
    }
    for server_only in [Key::PublishConfirm, Key::PublishError, Key::Deliver, Key::MetadataUpdate, Key::ConsumerUpdate] {
        let content = [&[0, server_only as u8, 0, 1][..], &[0; 32]].concat();
        assert!(FromClient::decode(&content).is_err(), "{server_only:?}");
    }
}

#[test]
fn a_frame_waits_for_its_end_and_must_not_be_too_large() {
    let mut buffer = BytesMut::from(&b"\0\0\0\x04\0\x17\0"[..]);
    assert_eq!(frame::next(&mut buffer, 4), Ok(None));
    buffer.put_u8(1);
    assert_eq!(frame::next(&mut buffer, 3), Err(TooLarge { size: 4, max: 3 }));
    assert_eq!(frame::next(&mut buffer, 4), Ok(Some(Bytes::from_static(b"\0\x17\0\x01"))));
    assert_eq!(frame::next(&mut buffer, 4), Ok(None));
}

#[test]
fn confirms_and_errors_have_the_bytes_of_the_reference() {
    let mut out = Output::default();
    out.confirm(3, &[1, 2]);
    assert_eq!(&out.take()[..], b"\0\0\0\x19\0\x03\0\x01\x03\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02");
    out.publish_error(3, &[1], Code::PublisherDoesNotExist);
    assert_eq!(&out.take()[..], b"\0\0\0\x13\0\x04\0\x01\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\x12");
    out.credit_error(4, Code::SubscriptionIdDoesNotExist);
    assert_eq!(&out.take()[..], b"\0\0\0\x07\x80\x09\0\x01\0\x04\x04");
}

#[test]
fn a_chunk_travels_behind_its_head_shared_when_it_is_large() {
    let head = ChunkHead { entries: 2, records: 5, timestamp_ms: 1_700_000_000_000, epoch: 1, first: 100, crc: 0xDEAD_BEEF };
    for (len, committed) in [(3, None), (100_000, Some(104))] {
        let data = Bytes::from(vec![7; len]);
        let (first, time_ms, filter) = (Offset(100), 1_700_000_000_000, Bytes::new());
        let chunk = StreamChunk { first, entries: 2, records: 5, time_ms, crc: 0xDEAD_BEEF, filter, data: data.clone(), file: None };
        let mut out = Output::default();
        out.deliver(9, committed, &chunk);
        assert_eq!(out.len(), 4 + 5 + if committed.is_some() { 8 } else { 0 } + 48 + len);
        let mut slices = [std::io::IoSlice::new(&[]); 4];
        let Front::Memory { slices: filled, more: false } = out.front(&mut slices) else { panic!("nothing is in a file") };
        let shared = slices[..filled].iter().any(|slice| slice.as_ptr() == data.as_ptr());
        assert_eq!(shared, len > 4096);
        let content = frames(&mut out).remove(0);
        assert_eq!(FromServer::decode(&content), Ok(FromServer::Deliver { subscription: 9, committed, head, data: &data }));
    }
}

#[test]
fn a_chunk_in_a_file_is_sent_from_there_in_its_turn() {
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"..the data section..").unwrap();
    let file: Arc<Lent> = Arc::new(file);
    let bytes = Place::new(&file, 2).part(4..16).expect("the file is here");
    let data = Bytes::from_static(b"data section");
    let (time_ms, filter) = (1_700_000_000_000, Bytes::new());
    let chunk = StreamChunk { first: Offset(1), entries: 1, records: 1, time_ms, crc: 1, filter, data, file: Some(bytes) };
    let mut out = Output::default();
    out.heartbeat();
    out.deliver(9, None, &chunk);
    out.heartbeat();
    let mut slices = [std::io::IoSlice::new(&[]); 4];
    assert!(matches!(out.front(&mut slices), Front::Memory { slices: 1, more: true }), "the head waits for the file");
    let head = slices[0].len();
    assert_eq!(head, 8 + 4 + 5 + 48);
    out.advance(head + 5);
    let mut slices = [std::io::IoSlice::new(&[]); 4];
    let Front::File(rest) = out.front(&mut slices) else { panic!("the file's turn") };
    assert_eq!((rest.position(), rest.len()), (2 + 4 + 5, 7));
    out.settle(|bytes| Ok::<_, ()>(Bytes::from(vec![b'x'; bytes.len()]))).unwrap();
    let mut slices = [std::io::IoSlice::new(&[]); 4];
    assert!(matches!(out.front(&mut slices), Front::Memory { slices: 2, more: false }), "nothing is in a file any more");
    assert_eq!(&slices[0][..], b"xxxxxxx");
    out.advance(7 + 8);
    assert!(out.is_empty());
}

#[test]
fn every_answer_is_read_as_it_was_written() {
    let mut out = Output::default();
    let versions = [Versions { key: 2, min: 1, max: 2 }];
    let broker = Broker { reference: 0, host: "node1", port: 5552 };
    let place = StreamMetadata { stream: "s", code: 1, leader: 0, replicas: vec![1, 2] };
    out.respond(Key::Create, 1, Code::StreamAlreadyExists);
    out.pairs(Key::Open, 2, &[("advertised_port", "5552")]);
    out.texts(Key::Route, 3, Code::Ok, &["a", "b"]);
    out.number(Key::QueryOffset, 4, Code::NoOffset, 0);
    out.resolved(5, Code::Ok, 77);
    out.versions(6, &versions);
    out.stats(7, Code::Ok, &[("first_chunk_id", -1)]);
    out.metadata(8, &[broker], std::slice::from_ref(&place));
    out.tune(1 << 20, 60);
    out.close(9, Code::UnknownFrame, "unknown frame");
    out.heartbeat();
    out.metadata_update("s", Code::StreamNotAvailable);
    out.consumer_update(10, 3, true);
    let response = |key, correlation, code, answer| FromServer::Response { key, correlation, code, answer };
    let expected = [
        response(Key::Create, 1, 5, Answer::Bare),
        response(Key::Open, 2, 1, Answer::Pairs(vec![("advertised_port", "5552")])),
        response(Key::Route, 3, 1, Answer::Texts(vec!["a", "b"])),
        response(Key::QueryOffset, 4, 0x13, Answer::Number(0)),
        response(Key::ResolveOffsetSpec, 5, 1, Answer::Offset(4, 77)),
        response(Key::ExchangeCommandVersions, 6, 1, Answer::Versions(versions.to_vec())),
        response(Key::StreamStats, 7, 1, Answer::Stats(vec![("first_chunk_id", -1)])),
        FromServer::Metadata { correlation: 8, brokers: vec![broker], streams: vec![place] },
        FromServer::Tune { frame_max: 1 << 20, heartbeat: 60 },
        FromServer::Close { correlation: 9, code: 13, reason: "unknown frame" },
        FromServer::Heartbeat,
        FromServer::MetadataUpdate { code: 6, stream: "s" },
        FromServer::ConsumerUpdate { correlation: 10, subscription: 3, active: true },
    ];
    let frames = frames(&mut out);
    assert_eq!(frames.len(), expected.len());
    for (content, expected) in frames.iter().zip(expected) {
        assert_eq!(FromServer::decode(content), Ok(expected));
    }
}

#[test]
fn a_key_has_its_number() {
    assert!(Key::ALL.iter().enumerate().all(|(at, key)| *key as usize == at + 1));
    assert!(Key::of(0).is_none() && Key::of(32).is_none() && Key::of(0x8000).is_none());
    assert_eq!(Key::of(0x8016), Some(Key::Close));
}

fn offsets() -> impl Strategy<Value = OffsetSpec> {
    prop_oneof![
        Just(OffsetSpec::First),
        Just(OffsetSpec::Last),
        Just(OffsetSpec::Next),
        any::<u64>().prop_map(OffsetSpec::Offset),
        any::<i64>().prop_map(OffsetSpec::Timestamp),
    ]
}

/// Everything a client can say, made of these parts.
fn sayings<'a>(a: &'a str, b: &'a str, c: &'a str, n: u64, offset: OffsetSpec) -> Vec<FromClient<'a>> {
    let (small, mid, wide) = (n as u8, n as u16, n as u32);
    let pairs = vec![(a, b), (c, a)];
    let requests = vec![
        Request::DeclarePublisher { publisher: small, reference: a, stream: b },
        Request::QueryPublisherSequence { reference: a, stream: b },
        Request::DeletePublisher { publisher: small },
        Request::Subscribe { subscription: small, stream: a, offset, credit: mid, properties: pairs.clone() },
        Request::QueryOffset { reference: a, stream: b },
        Request::Unsubscribe { subscription: small },
        Request::Create { stream: a, arguments: pairs.clone() },
        Request::Delete { stream: a },
        Request::Metadata { streams: vec![a, b, c] },
        Request::PeerProperties { properties: pairs.clone() },
        Request::SaslHandshake,
        Request::SaslAuthenticate { mechanism: a, response: b.as_bytes() },
        Request::Open { vhost: a },
        Request::Close { code: mid, reason: a },
        Request::Route { routing_key: a, super_stream: b },
        Request::Partitions { super_stream: a },
        Request::ExchangeCommandVersions { commands: vec![Versions { key: mid, min: 1, max: 2 }] },
        Request::StreamStats { stream: a },
        Request::CreateSuperStream { name: a, partitions: vec![b, c], binding_keys: vec![c], arguments: pairs.clone() },
        Request::DeleteSuperStream { name: a },
        Request::ResolveOffsetSpec { stream: a, offset, properties: pairs },
    ];
    let mut all: Vec<_> = requests.into_iter().map(|request| FromClient::Request { correlation: wide, request }).collect();
    all.extend([
        FromClient::Credit { subscription: small, credit: mid as i16 },
        FromClient::StoreOffset { reference: a, stream: b, offset: n },
        FromClient::Tune { frame_max: wide, heartbeat: wide },
        FromClient::Heartbeat,
        FromClient::Closed { correlation: wide, code: mid },
        FromClient::ConsumerUpdated { correlation: wide, code: mid, offset: Some(offset) },
        FromClient::ConsumerUpdated { correlation: wide, code: mid, offset: None },
    ]);
    all
}

proptest! {
    #[test]
    fn what_a_client_says_is_read_as_it_was_written(
        a in ".{0,40}", b in ".{0,40}", c in ".{0,40}", n in any::<u64>(), offset in offsets(),
    ) {
        for said in sayings(&a, &b, &c, n, offset) {
            let content = encoded(&said);
            prop_assert_eq!(FromClient::decode(&content), Ok(said));
        }
    }

    #[test]
    fn a_frame_that_is_cut_off_is_malformed_and_never_read_beyond_its_end(n in any::<u64>(), offset in offsets(), cut in 1_usize..8) {
        for said in sayings("reference", "stream", "x", n, offset) {
            let content = encoded(&said);
            let short = &content[..content.len().saturating_sub(cut)];
            if let Ok(read) = FromClient::decode(short) {
                let is_optional = matches!(&said, FromClient::ConsumerUpdated { .. });
                prop_assert!(is_optional, "{:?} from {:?}", read, said);
            }
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), key in 0_u16..40, response in any::<bool>()) {
        let head = [(key | if response { 0x8000 } else { 0 }).to_be_bytes(), 1_u16.to_be_bytes()].concat();
        for content in [bytes.clone(), [head, bytes].concat()] {
            if let Ok(FromClient::Publish { messages, .. }) = FromClient::decode(&content) {
                let walked: usize = messages.flatten().map(|m| m.bytes.len()).sum();
                prop_assert!(walked <= content.len());
            }
            let _ = FromServer::decode(&content);
            for version in [1, 2] {
                Messages::new(version, &content).for_each(drop);
            }
        }
    }
}
