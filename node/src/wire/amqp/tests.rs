//! The codec against itself: round trips, golden bytes, and bytes that are wrong in every way.

use super::content::{Properties, Property};
use super::output::Content;
use super::*;
use crate::model::catalog::{Table, Value};
use crate::wire::rope::Front;
use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut buffer = BytesMut::from(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = frame::next(&mut buffer, 131_072).expect("frames") {
        frames.push(frame);
    }
    assert!(buffer.is_empty());
    frames
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Void),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (-1000i32..1000).prop_map(|f| Value::Float(f as f32 / 8.0)),
        (-1000i32..1000).prop_map(|f| Value::Double(f64::from(f) / 8.0)),
        (any::<u8>(), any::<i32>()).prop_map(|(s, v)| Value::Decimal(s, v)),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Value::Text),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Value::Bytes),
        any::<u64>().prop_map(Value::Timestamp),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::List),
            proptest::collection::btree_map("[a-z]{0,8}", inner, 0..6).prop_map(Value::Table),
        ]
    })
}

fn tables() -> impl Strategy<Value = Table> {
    proptest::collection::btree_map("[a-zé]{0,8}", value(), 0..6)
}

proptest! {
    #[test]
    fn tables_survive_the_wire(table in tables()) {
        let mut bytes = BytesMut::new();
        super::table::write(&mut bytes, &table);
        let mut rest = &bytes[..];
        prop_assert_eq!(super::table::read(&mut rest).expect("well formed"), table);
        prop_assert!(rest.is_empty());
        let mut rest = &bytes[..];
        super::table::skip(&mut rest).expect("well formed");
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn skip_accepts_what_read_accepts(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let (mut a, mut b) = (&bytes[..], &bytes[..]);
        if super::table::read(&mut a).is_ok() {
            prop_assert!(super::table::skip(&mut b).is_ok());
        }
    }

    #[test]
    fn methods_survive_the_wire(name in "[a-z.]{0,255}", flags in any::<[bool; 5]>(), n in any::<u32>(), arguments in tables()) {
        let queue = Short::from(name.as_str());
        let [passive, durable, exclusive, auto_delete, nowait] = flags;
        for method in [
            Method::QueueDeclare { ticket: 0, queue: queue.clone(), passive, durable, exclusive, auto_delete, nowait, arguments: arguments.clone() },
            Method::QueueDeclareOk { queue: queue.clone(), message_count: n, consumer_count: n },
            Method::BasicConsume {
                ticket: 1, queue: queue.clone(), consumer_tag: queue.clone(), no_local: passive, no_ack: durable, exclusive, nowait,
                arguments: arguments.clone(),
            },
            Method::BasicNack { delivery_tag: u64::from(n), multiple: passive, requeue: durable },
            Method::ConnectionStart {
                version_major: 0, version_minor: 9, server_properties: arguments.clone(), mechanisms: "PLAIN".into(), locales: "en_US".into(),
            },
        ] {
            let mut bytes = BytesMut::new();
            method.encode(&mut bytes);
            prop_assert_eq!(Method::decode(bytes.freeze()).expect("well formed"), Some(method));
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), class in 0u16..100, method in 0u16..125) {
        let mut payload = BytesMut::new();
        payload.put_u16(class);
        payload.put_u16(method);
        payload.put_slice(&bytes);
        let _ = Method::decode(payload.freeze());
        let bytes = Bytes::from(bytes);
        let _ = ContentHeader::decode(bytes.clone());
        let _ = Properties(&bytes).headers();
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = frame::next(&mut buffer, 8192) {}
    }

    #[test]
    fn mutated_frames_never_panic(at in 0usize..200, byte in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..64)) {
        let mut output = Output::default();
        output.method(1, &Method::BasicPublish { ticket: 0, exchange: "e".into(), routing_key: "k".into(), mandatory: true, immediate: false });
        output.content(1, &Content { properties: &[0x20, 0, 0, 0, 0, 7, 1, b'a', b'S', 0, 0, 0, 0], body: &Bytes::from(body), body_at: 0 }, 4096);
        let mut bytes = BytesMut::from(&output.take()[..]);
        let at = at % bytes.len();
        bytes[at] = byte;
        while let Ok(Some(frame)) = frame::next(&mut bytes, 8192) {
            match frame.kind {
                FrameKind::Method => drop(Method::decode(frame.payload)),
                FrameKind::Header => drop(ContentHeader::decode(frame.payload)),
                FrameKind::Body | FrameKind::Heartbeat => {}
            }
        }
    }

    #[test]
    fn content_is_split_at_frame_max_and_comes_back_whole(len in 0usize..40_000, frame_max in 4096u32..9000, written in 1usize..5000) {
        let body = Bytes::from((0..len).map(|i| i as u8).collect::<Vec<_>>());
        let mut output = Output::default();
        output.deliver(7, b"tag", 9, true, b"ex", b"key");
        output.content(7, &Content { properties: &[0x10, 0, 2], body: &body, body_at: 0 }, frame_max);
        let total = output.len();
        let mut bytes = Vec::new();
        while !output.is_empty() {
            let mut slices = [std::io::IoSlice::new(&[]); 4];
            let Front::Memory { slices: filled, .. } = output.front(&mut slices) else { panic!("nothing is in a file") };
            let all: Vec<u8> = slices[..filled].iter().flat_map(|s| s.to_vec()).collect();
            let step = all.len().min(written);
            bytes.extend_from_slice(&all[..step]);
            output.advance(step);
        }
        prop_assert_eq!(bytes.len(), total);
        let frames = frames(&bytes);
        let deliver = Method::BasicDeliver {
            consumer_tag: "tag".into(), delivery_tag: 9, redelivered: true, exchange: "ex".into(), routing_key: "key".into(),
        };
        prop_assert_eq!(Method::decode(frames[0].payload.clone()).expect("well formed"), Some(deliver));
        let header = ContentHeader::decode(frames[1].payload.clone()).expect("well formed");
        prop_assert_eq!((header.class, header.body_size as usize), (60, len));
        prop_assert!(Properties(&header.properties).persistent());
        prop_assert!(frames[2..].iter().all(|f| f.payload.len() + 8 <= frame_max as usize));
        let joined: Vec<u8> = frames[2..].iter().flat_map(|f| f.payload.to_vec()).collect();
        prop_assert_eq!(joined, body.to_vec());
    }
}

#[test]
fn queue_declare_has_the_bytes_of_the_spec() {
    let method = Method::QueueDeclare {
        ticket: 0,
        queue: "q".into(),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: true,
        nowait: false,
        arguments: Table::from([("x".into(), Value::Int(5))]),
    };
    let mut output = Output::default();
    output.method(3, &method);
    let golden = b"\x01\x00\x03\x00\x00\x00\x14\x00\x32\x00\x0a\x00\x00\x01q\x0a\x00\x00\x00\x07\x01xI\x00\x00\x00\x05\xce";
    assert_eq!(&output.take()[..], &golden[..]);
}

#[test]
fn every_integer_type_reads_as_an_integer() {
    let bytes = b"\x01ab\xff\x01bB\xff\x01cs\xff\xff\x01du\xff\xff\x01eI\xff\xff\xff\xff\x01fi\xff\xff\xff\xff\x01gl\xff\xff\xff\xff\xff\xff\xff\xff\x01hL\0\0\0\0\0\0\0\x01";
    let table = super::table::read_entries(bytes).expect("table");
    let ints: Vec<_> = table.values().cloned().collect();
    let expected = [-1, 255, -1, 65535, -1, 4294967295, -1, 1].map(Value::Int);
    assert_eq!(ints, expected);
    let beyond = super::table::read_entries(b"\x01hL\xff\xff\xff\xff\xff\xff\xff\xfe").expect("table");
    assert_eq!(beyond.get("h"), Some(&Value::Int(-2)), "as RabbitMQ reads it");
}

#[test]
fn tables_nested_without_end_are_refused() {
    let mut bytes: Vec<u8> = Vec::new();
    for _ in 0..1000 {
        let mut outer = vec![1, b'a', b'F'];
        outer.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        outer.extend_from_slice(&bytes);
        bytes = outer;
    }
    assert!(super::table::read_entries(&bytes).is_err());
    let mut with_len = (bytes.len() as u32).to_be_bytes().to_vec();
    with_len.extend_from_slice(&bytes);
    assert!(super::table::skip(&mut &with_len[..]).is_err());
}

#[test]
fn frames_that_are_too_long_or_end_wrongly_are_refused() {
    let mut long = BytesMut::from(&b"\x01\x00\x00\x00\x00\x20\x01"[..]);
    assert_eq!(frame::next(&mut long, 8192), Err(FrameError::TooLarge { kind: 1, size: 8193, max: 8184 }));
    let mut end = BytesMut::from(&b"\x08\x00\x00\x00\x00\x00\x00\xcd"[..]);
    assert_eq!(frame::next(&mut end, 8192), Err(FrameError::End { kind: 8, octets: "all octets = <<>>".into(), marker: 0xcd }));
    let mut kind = BytesMut::from(&b"\x05\x00\x00\x00\x00\x00\x00\xce"[..]);
    assert_eq!(frame::next(&mut kind, 8192), Err(FrameError::Unknown { kind: 5, octets: "all octets = <<>>".into() }));
    let mut part = BytesMut::from(&b"\x08\x00\x00\x00\x00\x00"[..]);
    assert_eq!(frame::next(&mut part, 8192), Ok(None));
}

#[test]
fn frames_that_cannot_be_are_refused_in_rabbitmqs_words() {
    let said = |kind: u8, payload: &[u8], end: u8| {
        let mut bytes = BytesMut::from(&[kind, 0, 1, 0, 0, 0, payload.len() as u8][..]);
        bytes.put_slice(payload);
        bytes.put_u8(end);
        frame::next(&mut bytes, 8192).map(drop).map_err(|error| error.to_string())
    };
    let wrong = |text: &str| Err(text.to_owned());
    assert_eq!(said(9, b"abc", 0xce), wrong("type 9, all octets = <<\"abc\">>: unknown_frame"));
    assert_eq!(said(1, &[0, 50], 0xce), wrong("type 1, all octets = <<0,50>>: unknown_frame"));
    assert_eq!(said(2, &[0; 11], 0xce), wrong("type 2, all octets = <<0,0,0,0,0,0,0,0,0,0,0>>: unknown_frame"));
    assert_eq!(said(8, b"?", 0xce), wrong("type 8, all octets = <<\"?\">>: unknown_frame"));
    assert_eq!(said(3, &[1; 17], 0), wrong("type 3, first 16 octets = <<1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1>>: {invalid_frame_end_marker,0}"));
    assert_eq!(said(3, &[], 0xce), Ok(()));
}

#[test]
fn properties_are_read_one_by_one() {
    let mut bytes = BytesMut::new();
    bytes.put_u16(0x8000 | 0x2000 | 0x1000 | 0x0800 | 0x0100 | 0x0010);
    bytes.put_slice(b"\x04text\x00\x00\x00\x04\x01ht\x01\x02\x09\x0260\x05guest");
    let properties = Properties(&bytes);
    properties.check().expect("form");
    assert_eq!(properties.get(Property::ContentType), Some(&b"text"[..]));
    assert_eq!(properties.headers(), Some(Table::from([("h".into(), Value::Bool(true))])));
    assert!(properties.persistent());
    assert_eq!(properties.priority(), 9);
    assert_eq!(properties.expiration(), Some(&b"60"[..]));
    assert_eq!(properties.get(Property::UserId), Some(&b"guest"[..]));
    assert_eq!(properties.get(Property::AppId), None);
    bytes.put_u8(0);
    assert!(Properties(&bytes).check().is_err());
}

#[test]
fn a_short_string_is_cut_at_a_character() {
    let mut out = BytesMut::new();
    primitive::put_short(&mut out, "é".repeat(200).as_bytes());
    assert_eq!(out[0], 254);
    assert_eq!(out.len(), 255);
}
