//! Messages there and back, against bytes written by hand from the specifications, and any bytes at all.

use super::*;
use crate::model::entry::StoredMessage;
use crate::model::properties::{Fields, entries};
use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

fn record(exchange: &str, key: &[u8], fields: &Fields<'_>, body: &[u8]) -> Vec<u8> {
    let mut properties = Vec::new();
    fields.write(&mut properties);
    let mut out = BytesMut::new();
    append_record(&mut out, &Published { exchange: exchange.as_bytes(), key, properties: &properties, body });
    out.to_vec()
}

fn read(record: &[u8]) -> StoredMessage {
    let mut out = BytesMut::new();
    append_stored(&mut out, &mut Reading::default(), record, 77, b"stream");
    StoredMessage::parse(out.freeze()).expect("a stored message")
}

type Headers = Vec<(Vec<u8>, Vec<u8>)>;

/// Sorted; the offset apart.
fn headers(message: &StoredMessage) -> (Headers, Option<u64>) {
    let fields = Fields::parse(&message.properties).expect("a property list");
    let all = entries(fields.headers.unwrap_or_default()).map(|(name, value)| (name.to_vec(), value.to_vec()));
    let (offsets, mut others): (Headers, Headers) = all.partition(|h| h.0 == b"x-stream-offset");
    others.sort();
    let offset = |value: &[u8]| u64::from_be_bytes(value[1..].try_into().expect("eight bytes"));
    assert_eq!(offsets.len(), 1);
    assert_eq!(offsets[0].1[0], b'l');
    (others, offsets.first().map(|h| offset(&h.1)))
}

fn table(pairs: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in pairs {
        out.put_u8(name.len() as u8);
        out.put_slice(name.as_bytes());
        out.put_slice(value);
    }
    out
}

fn has_kept(record: &[u8]) -> bool {
    record.windows(KEPT.len()).any(|bytes| bytes == KEPT.as_bytes())
}

#[test]
fn a_plain_message_is_its_address_and_its_data() {
    let bytes = record("ex", b"key", &Fields::default(), b"body");
    let expected =
        [&b"\x00\x53\x72\xc1\x25\x04"[..], b"\xa3\x0ax-exchange\xa1\x02ex\xa3\x0dx-routing-key\xa1\x03key", b"\x00\x53\x75\xa0\x04body"]
            .concat();
    assert_eq!(bytes, expected);
    let back = read(&bytes);
    assert_eq!((&back.exchange[..], &back.key[..], &back.body[..]), (&b"ex"[..], &b"key"[..], &b"body"[..]));
    assert_eq!(headers(&back), (vec![], Some(77)));
}

#[test]
fn properties_and_headers_go_where_rabbitmq_puts_them() {
    let text = |text: &str| [&b"S"[..], &(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    let list = table(&[("plain", &text("v")), ("x-mine", &text("w")), ("n", b"I\0\0\x01\0")]);
    let fields = Fields {
        content_type: Some(b"text/plain"),
        headers: Some(&list),
        delivery_mode: Some(2),
        priority: Some(5),
        correlation_id: Some(b"urn:uuid:00010203-0405-0607-0809-0a0b0c0d0e0f"),
        reply_to: Some(b"an/swers"),
        expiration: Some(b"60000"),
        message_id: Some(b"m1"),
        timestamp: Some(1_700_000_000),
        kind: Some(b"t"),
        user_id: Some(b"guest"),
        app_id: Some(b"app"),
        ..Fields::default()
    };
    let bytes = record("", b"q", &fields, b"");
    let message = Message::parse(&bytes).expect("as specified");
    let header: Vec<_> = message.header.map(Result::unwrap).collect();
    assert_eq!(header, [Value::Bool(true), Value::Ubyte(5), Value::Uint(60_000)]);
    let properties: Vec<_> = message.properties.map(Result::unwrap).collect();
    let uuid = std::array::from_fn(|n| n as u8);
    let (null, time) = (Value::Null, Value::Timestamp(1_700_000_000_000));
    let expected = [
        Value::Text(b"m1"),
        Value::Binary(b"guest"),
        null,
        null,
        Value::Text(b"/queues/an%2Fswers"),
        Value::Uuid(&uuid),
        Value::Symbol(b"text/plain"),
        null,
        null,
        time,
        Value::Text(b"app"),
    ];
    assert_eq!(properties, expected);
    let application: Vec<_> = message.application.pairs().map(Result::unwrap).collect();
    assert_eq!(application, [(Value::Text(b"plain"), Value::Text(b"v")), (Value::Text(b"n"), Value::Int(256))]);
    let annotations: Vec<_> = message.annotations.pairs().map(Result::unwrap).collect();
    assert!(annotations.contains(&(Value::Symbol(b"x-basic-type"), Value::Text(b"t"))));
    assert!(annotations.contains(&(Value::Symbol(b"x-mine"), Value::Text(b"w"))));
    assert!(!has_kept(&bytes));
    let back = read(&bytes);
    let again = Fields::parse(&back.properties).expect("a list");
    assert_eq!(Fields { headers: None, ..again }, Fields { headers: None, ..fields });
    assert_eq!(headers(&back).0.len(), 3);
}

#[test]
fn what_amqp_1_0_has_no_place_for_is_kept_beside_it() {
    let nested = table(&[("in", b"A\0\0\0\x04tat\0")]);
    let inner = [&b"F"[..], &(nested.len() as u32).to_be_bytes(), &nested].concat();
    let cases: [(&str, Vec<u8>); 6] = [
        ("a table", inner),
        ("a decimal", b"D\x02\0\0\0\x09".to_vec()),
        ("x-bytes", b"x\0\0\0\x02\xff\0".to_vec()),
        ("a list", b"A\0\0\0\x01V".to_vec()),
        ("x-death", b"A\0\0\0\0".to_vec()),
        ("a large number", b"L\xff\xff\xff\xff\xff\xff\xff\xff".to_vec()),
    ];
    for (name, value) in &cases {
        let list = table(&[("before", b"V"), (name, value)]);
        let bytes = record("", b"q", &Fields { headers: Some(&list), ..Fields::default() }, b"b");
        assert!(has_kept(&bytes), "{name}");
        let mut expected = vec![(b"before".to_vec(), b"V".to_vec()), (name.as_bytes().to_vec(), value.clone())];
        expected.sort();
        assert_eq!(headers(&read(&bytes)).0, expected, "{name}");
    }
    let bytes = record("", b"q", &Fields { cluster_id: Some(b"c"), ..Fields::default() }, b"b");
    assert_eq!(Fields::parse(&read(&bytes).properties).and_then(|f| f.cluster_id), Some(&b"c"[..]));
}

#[test]
fn blind_copies_are_in_no_record() {
    let copies = b"A\0\0\0\x0bS\0\0\0\x06secret";
    for name in ["BCC", "\0CC"] {
        let list = table(&[(name, copies), ("CC", b"A\0\0\0\x06S\0\0\0\x01c"), ("odd", b"A\0\0\0\0")]);
        let bytes = record("", b"q", &Fields { headers: Some(&list), ..Fields::default() }, b"b");
        assert!(has_kept(&bytes));
        assert!(!bytes.windows(6).any(|w| w == b"secret"));
        let names: Vec<_> = headers(&read(&bytes)).0.into_iter().map(|h| h.0).collect();
        assert_eq!(names, [b"CC".to_vec(), b"odd".to_vec()]);
    }
}

#[test]
fn a_message_from_another_stream_gets_its_new_offset() {
    let list = table(&[("x-stream-offset", b"l\0\0\0\0\0\0\0\x05"), ("x", b"V")]);
    for more in [&b""[..], b"\x03oddA\0\0\0\0"] {
        let list = [&list[..], more].concat();
        let back = read(&record("", b"q", &Fields { headers: Some(&list), ..Fields::default() }, b"b"));
        assert_eq!(headers(&back).1, Some(77));
    }
}

#[test]
fn what_is_not_amqp_1_0_is_a_body() {
    for bytes in [&b""[..], b"hello", b"\x00\x53\x75\xa0\x09cut", b"\x00\x53\x79\x40"] {
        let back = read(bytes);
        assert_eq!((&back.exchange[..], &back.key[..], &back.body[..]), (&b""[..], &b"stream"[..], bytes));
        assert_eq!(headers(&back), (vec![], Some(77)));
    }
}

/// As the Java client writes it: ids that are no text, annotations and properties of types that AMQP 0-9-1 has.
#[test]
fn a_record_of_a_stream_client_is_mapped_as_by_rabbitmq() {
    let bytes = [
        part(0x70, 0xc0, 2, b"\x41\x50\x03"),
        part(0x72, 0xc1, 4, b"\xa3\x05x-one\x52\x07\xa3\x05other\xa1\x04none"),
        part(0x73, 0xc0, 6, b"\x53\x2a\xa0\x01u\xa1\x02to\x40\xa1\x01r\xa0\x02\xff\x01"),
        part(0x74, 0xc1, 4, b"\xa1\x02up\x80\0\0\0\0\0\0\0\x01\xa1\x01n\x40"),
        b"\x00\x53\x75\xb0\0\0\0\x03one\x00\x53\x75\xa0\x03two".to_vec(),
    ]
    .concat();
    let back = read(&bytes);
    let fields = Fields::parse(&back.properties).expect("a list");
    assert_eq!((fields.delivery_mode, fields.priority, fields.message_id), (Some(2), Some(3), Some(&b"42"[..])));
    assert_eq!((fields.user_id, fields.reply_to, fields.correlation_id), (Some(&b"u"[..]), Some(&b"r"[..]), None));
    assert_eq!(&back.body[..], b"onetwo");
    let expected: Headers = [
        (&b"n"[..], &b"V"[..]),
        (b"up", b"l\0\0\0\0\0\0\0\x01"),
        (b"x-correlation-id", b"x\0\0\0\x02\xff\x01"),
        (b"x-one", b"i\0\0\0\x07"),
    ]
    .map(|(name, value)| (name.to_vec(), value.to_vec()))
    .to_vec();
    assert_eq!(headers(&back).0, expected);
}

/// A section of a list or a map with so many items.
fn part(section: u8, code: u8, count: u8, items: &[u8]) -> Vec<u8> {
    [&[0, 0x53, section, code, items.len() as u8 + 1, count][..], items].concat()
}

#[test]
fn bodies_of_values_travel_as_they_are() {
    let sections = b"\x00\x53\x77\xa1\x05hello";
    let back = read(sections);
    assert_eq!(&back.body[..], sections);
    assert_eq!(Fields::parse(&back.properties).and_then(|f| f.kind), Some(&b"amqp-1.0"[..]));
    let bytes = record("", b"q", &Fields { kind: Some(b"amqp-1.0"), ..Fields::default() }, sections);
    assert!(matches!(Message::parse(&bytes).expect("a message").body, Body::Encoded(body) if body == sections));
    assert_eq!(&read(&bytes).body[..], sections);
    let lie = record("", b"q", &Fields { kind: Some(b"amqp-1.0"), ..Fields::default() }, b"no section");
    assert_eq!(&read(&lie).body[..], b"no section");
    assert_eq!(Fields::parse(&read(&lie).properties).and_then(|f| f.kind), Some(&b"amqp-1.0"[..]));
}

#[test]
fn a_filter_value_is_a_text() {
    let with = |value: &[u8]| {
        let mut out = Vec::new();
        Fields { headers: Some(&table(&[("x-stream-filter-value", value)])), ..Fields::default() }.write(&mut out);
        filter_value(&out).map(<[u8]>::to_vec)
    };
    assert_eq!(with(b"S\0\0\0\x04emea"), Some(b"emea".to_vec()));
    assert_eq!(with(b"I\0\0\0\x04"), None);
    assert_eq!(filter_value(&[0, 0]), None);
}

#[test]
fn an_array_of_nothing_is_not_walked_for_ever() {
    for bytes in [&b"\x00\x53\x77\xf0\0\0\0\x05\xff\xff\xff\xff\x40"[..], b"\x00\x53\x74\xd1\0\0\0\x04\xff\xff\xff\xff"] {
        assert!(Message::parse(bytes).is_err());
    }
}

fn a_value(depth: u32) -> BoxedStrategy<Vec<u8>> {
    let fixed = prop_oneof![
        Just(b"V".to_vec()),
        any::<bool>().prop_map(|b| vec![b't', u8::from(b)]),
        prop::sample::select(&b"bBsuIilLfdDT"[..]).prop_flat_map(|kind| {
            let len = match kind {
                b'b' | b'B' => 1,
                b's' | b'u' => 2,
                b'I' | b'i' | b'f' => 4,
                b'D' => 5,
                _ => 8,
            };
            prop::collection::vec(any::<u8>(), len).prop_map(move |bytes| [&[kind][..], &bytes].concat())
        }),
        (prop::sample::select(&b"Sx"[..]), prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(kind, bytes)| long(kind, &bytes)),
        "[a-z]{0,300}".prop_map(|text| long(b'S', text.as_bytes())),
    ];
    if depth == 0 {
        return fixed.boxed();
    }
    prop_oneof![
        4 => fixed,
        1 => prop::collection::vec(a_value(depth - 1), 0..4).prop_map(|items| long(b'A', &items.concat())),
        1 => a_table(depth - 1).prop_map(|table| long(b'F', &table)),
    ]
    .boxed()
}

fn long(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind][..], &(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

fn a_table(depth: u32) -> BoxedStrategy<Vec<u8>> {
    let name = prop_oneof!["[a-z]{0,6}", "x-[a-z]{0,6}", "x-basic-type", "x-cc", "x-opt-warren-properties", "ü"];
    let entry = (name, a_value(depth)).prop_map(|(name, value)| table(&[(name.as_str(), value.as_slice())]));
    prop::collection::vec(entry, 0..5).prop_map(|entries| entries.concat()).boxed()
}

fn text() -> impl Strategy<Value = Option<Vec<u8>>> {
    let some = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..6),
        "[ -~]{0,20}".prop_map(String::into_bytes),
        "[0-9]{1,12}".prop_map(String::into_bytes),
        Just(b"urn:uuid:00010203-0405-0607-0809-0a0b0c0d0e0F".to_vec()),
        Just(vec![b'/'; 255]),
    ];
    prop::option::of(some)
}

/// Equal but for the order of headers.
fn same(a: &Fields<'_>, b: &Fields<'_>) -> bool {
    Fields { headers: None, ..*a } == Fields { headers: None, ..*b }
}

proptest! {
    #[test]
    fn a_message_comes_back_whole(
        texts in prop::collection::vec(text(), 10),
        octets in (prop::option::of(any::<u8>()), prop::option::of(any::<u8>()), prop::option::of(any::<u64>())),
        table in prop::option::of(a_table(2)),
        exchange in "[a-z]{0,9}",
        key in prop::collection::vec(any::<u8>(), 0..256),
        body in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let at = |n: usize| texts[n].as_deref();
        let fields = Fields {
            content_type: at(0), content_encoding: at(1), headers: table.as_deref(), delivery_mode: octets.0, priority: octets.1,
            correlation_id: at(2), reply_to: at(3), expiration: at(4), message_id: at(5), timestamp: octets.2, kind: at(6),
            user_id: at(7), app_id: at(8), cluster_id: at(9).filter(|_| octets.0.is_some_and(|n| n < 20)),
        };
        let bytes = record(&exchange, &key, &fields, &body);
        prop_assert!(Message::parse(&bytes).is_ok());
        let back = read(&bytes);
        prop_assert_eq!((&back.exchange[..], &back.key[..], &back.body[..]), (exchange.as_bytes(), &key[..], &body[..]));
        let again = Fields::parse(&back.properties).expect("a list");
        prop_assert!(same(&again, &fields), "{:?} came back as {:?}", fields, again);
        let mut sent: Headers = entries(table.as_deref().unwrap_or_default()).map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
        sent.sort();
        prop_assert_eq!(headers(&back).0, sent);
    }

    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), table in a_table(2)) {
        read(&bytes);
        let mut known = record("e", b"k", &Fields { headers: Some(&table), kind: Some(b"k"), ..Fields::default() }, &bytes);
        for (at, byte) in flips {
            let at = at.index(known.len());
            known[at] = byte;
        }
        let back = read(&known);
        prop_assert!(Fields::parse(&back.properties).is_some(), "clients get well-formed properties, whatever was stored");
    }
}

#[test]
fn a_kept_list_that_is_malformed_is_passed_over() {
    let mut bytes = record("e", b"k", &Fields { cluster_id: Some(b"c"), app_id: Some(b"a"), ..Fields::default() }, b"b");
    let at = bytes.windows(KEPT.len()).position(|w| w == KEPT.as_bytes()).expect("kept") + KEPT.len() + 2;
    bytes[at + 1] = 0xff;
    let back = read(&bytes);
    let fields = Fields::parse(&back.properties).expect("a list");
    assert_eq!((fields.cluster_id, fields.app_id), (None, Some(&b"a"[..])));
    let _: Bytes = back.body;
}
