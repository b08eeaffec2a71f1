//! Client methods as bytes. Every function appends whole frames to a buffer; the caller writes the buffer, so that many frames leave
//! in one write. Numbers are class and method ids of AMQP 0-9-1 and of RabbitMQ's confirm and nack extensions.

use super::table::{Field, put_table};

/// Protocol header of AMQP 0-9-1.
pub const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
/// Frame type of a method.
pub const FRAME_METHOD: u8 = 1;
/// Frame type of a content header.
pub const FRAME_HEADER: u8 = 2;
/// Frame type of a piece of a body.
pub const FRAME_BODY: u8 = 3;
/// Frame type of a heartbeat.
pub const FRAME_HEARTBEAT: u8 = 8;
/// Last byte of a frame.
pub const FRAME_END: u8 = 0xCE;

/// Append a string of at most 255 bytes (longer ones are cut).
pub fn short_string(out: &mut Vec<u8>, text: &str) {
    let bytes = &text.as_bytes()[..text.len().min(255)];
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}

/// Append bytes with a 32-bit length.
pub fn long_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Append a frame.
pub fn frame(out: &mut Vec<u8>, kind: u8, channel: u16, payload: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    long_string(out, payload);
    out.push(FRAME_END);
}

/// Append a method frame whose arguments `fill` writes.
pub fn method(out: &mut Vec<u8>, channel: u16, id: (u16, u16), fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(FRAME_METHOD);
    out.extend_from_slice(&channel.to_be_bytes());
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&id.0.to_be_bytes());
    out.extend_from_slice(&id.1.to_be_bytes());
    fill(out);
    let length = (out.len() - length_at - 4) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
    out.push(FRAME_END);
}

/// connection.start-ok with PLAIN.
pub fn start_ok(out: &mut Vec<u8>, user: &str, password: &str) {
    let capabilities = ["publisher_confirms", "basic.nack", "consumer_cancel_notify", "connection.blocked", "authentication_failure_close"]
        .map(|name| (name.to_owned(), Field::Bool(true)));
    let properties = [
        ("product".to_owned(), Field::Text("warren bench".into())),
        ("version".to_owned(), Field::Text(env!("CARGO_PKG_VERSION").into())),
        ("capabilities".to_owned(), Field::Table(capabilities.into())),
    ];
    method(out, 0, (10, 11), |out| {
        put_table(out, &properties);
        short_string(out, "PLAIN");
        long_string(out, format!("\0{user}\0{password}").as_bytes());
        short_string(out, "en_US");
    });
}

/// connection.tune-ok.
pub fn tune_ok(out: &mut Vec<u8>, channel_max: u16, frame_max: u32, heartbeat_s: u16) {
    method(out, 0, (10, 31), |out| {
        out.extend_from_slice(&channel_max.to_be_bytes());
        out.extend_from_slice(&frame_max.to_be_bytes());
        out.extend_from_slice(&heartbeat_s.to_be_bytes());
    });
}

/// connection.open.
pub fn connection_open(out: &mut Vec<u8>, vhost: &str) {
    method(out, 0, (10, 40), |out| {
        short_string(out, vhost);
        out.extend_from_slice(&[0, 0]);
    });
}

/// connection.close or channel.close (`channel` 0: the connection).
pub fn close(out: &mut Vec<u8>, channel: u16) {
    let id = if channel == 0 { (10, 50) } else { (20, 40) };
    method(out, channel, id, |out| {
        out.extend_from_slice(&200u16.to_be_bytes());
        short_string(out, "bye");
        out.extend_from_slice(&[0; 4]);
    });
}

/// A method without arguments.
pub fn bare(out: &mut Vec<u8>, channel: u16, id: (u16, u16)) {
    method(out, channel, id, |_| ());
}

/// channel.open.
pub fn channel_open(out: &mut Vec<u8>, channel: u16) {
    method(out, channel, (20, 10), |out| out.push(0));
}

/// confirm.select.
pub fn confirm_select(out: &mut Vec<u8>, channel: u16) {
    method(out, channel, (85, 10), |out| out.push(0));
}

/// basic.qos; 0 is no limit.
pub fn qos(out: &mut Vec<u8>, channel: u16, prefetch: u16, global: bool) {
    method(out, channel, (60, 10), |out| {
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&prefetch.to_be_bytes());
        out.push(u8::from(global));
    });
}

/// queue.declare; bits: 1 passive, 2 durable, 4 exclusive, 8 auto-delete.
pub fn queue_declare(out: &mut Vec<u8>, channel: u16, queue: &str, bits: u8, arguments: &[(String, Field)]) {
    method(out, channel, (50, 10), |out| {
        named(out, queue);
        out.push(bits);
        put_table(out, arguments);
    });
}

/// queue.delete without conditions.
pub fn queue_delete(out: &mut Vec<u8>, channel: u16, queue: &str) {
    method(out, channel, (50, 40), |out| {
        named(out, queue);
        out.push(0);
    });
}

/// queue.purge.
pub fn queue_purge(out: &mut Vec<u8>, channel: u16, queue: &str) {
    method(out, channel, (50, 30), |out| {
        named(out, queue);
        out.push(0);
    });
}

/// queue.bind.
pub fn queue_bind(out: &mut Vec<u8>, channel: u16, queue: &str, exchange: &str, key: &str) {
    method(out, channel, (50, 20), |out| {
        named(out, queue);
        short_string(out, exchange);
        short_string(out, key);
        out.push(0);
        put_table(out, &[]);
    });
}

/// exchange.declare; bits: 1 passive, 2 durable, 4 auto-delete, 8 internal.
pub fn exchange_declare(out: &mut Vec<u8>, channel: u16, exchange: &str, kind: &str, bits: u8) {
    exchange_declare_with(out, channel, exchange, (kind, bits), &[]);
}

/// The same with arguments.
pub fn exchange_declare_with(out: &mut Vec<u8>, channel: u16, exchange: &str, (kind, bits): (&str, u8), arguments: &[(String, Field)]) {
    method(out, channel, (40, 10), |out| {
        named(out, exchange);
        short_string(out, kind);
        out.push(bits);
        put_table(out, arguments);
    });
}

/// exchange.delete without conditions.
pub fn exchange_delete(out: &mut Vec<u8>, channel: u16, exchange: &str) {
    method(out, channel, (40, 20), |out| {
        named(out, exchange);
        out.push(0);
    });
}

/// basic.consume; bits: 1 no-local, 2 no-ack, 4 exclusive.
pub fn consume(out: &mut Vec<u8>, channel: u16, queue: &str, tag: &str, bits: u8, arguments: &[(String, Field)]) {
    method(out, channel, (60, 20), |out| {
        named(out, queue);
        short_string(out, tag);
        out.push(bits);
        put_table(out, arguments);
    });
}

/// basic.get.
pub fn get(out: &mut Vec<u8>, channel: u16, queue: &str, no_ack: bool) {
    method(out, channel, (60, 70), |out| {
        named(out, queue);
        out.push(u8::from(no_ack));
    });
}

/// basic.ack.
pub fn ack(out: &mut Vec<u8>, channel: u16, tag: u64, multiple: bool) {
    method(out, channel, (60, 80), |out| {
        out.extend_from_slice(&tag.to_be_bytes());
        out.push(u8::from(multiple));
    });
}

/// basic.nack.
pub fn nack(out: &mut Vec<u8>, channel: u16, tag: u64, multiple: bool, requeue: bool) {
    method(out, channel, (60, 120), |out| {
        out.extend_from_slice(&tag.to_be_bytes());
        out.push(u8::from(multiple) | u8::from(requeue) << 1);
    });
}

/// basic.publish with its content; a persistent message; the body is cut at `frame_max`.
pub fn publish(out: &mut Vec<u8>, route: Route<'_>, body: &[u8], frame_max: u32) {
    // Flags: delivery-mode; 2 = persistent.
    publish_properties(out, route, &[0x10, 0, 2], body, frame_max);
}

/// The same with a priority, the last byte of the content header.
pub fn publish_at(out: &mut Vec<u8>, route: Route<'_>, priority: u8, body: &[u8], frame_max: u32) {
    // Flags: delivery-mode, priority.
    publish_properties(out, route, &[0x18, 0, 2, priority], body, frame_max);
}

/// The same with headers.
pub fn publish_with(out: &mut Vec<u8>, route: Route<'_>, headers: &[(String, Field)], body: &[u8], frame_max: u32) {
    // Flags: headers, delivery-mode.
    let mut properties = vec![0x30, 0];
    put_table(&mut properties, headers);
    properties.push(2);
    publish_properties(out, route, &properties, body, frame_max);
}

fn publish_properties(out: &mut Vec<u8>, route: Route<'_>, properties: &[u8], body: &[u8], frame_max: u32) {
    method(out, route.channel, (60, 40), |out| {
        named(out, route.exchange);
        short_string(out, route.key);
        out.push(u8::from(route.mandatory));
    });
    let mut header = Vec::with_capacity(12 + properties.len());
    header.extend_from_slice(&60u16.to_be_bytes());
    header.extend_from_slice(&[0, 0]);
    header.extend_from_slice(&(body.len() as u64).to_be_bytes());
    header.extend_from_slice(properties);
    frame(out, FRAME_HEADER, route.channel, &header);
    let most = frame_max.saturating_sub(8).max(1) as usize;
    body.chunks(most).for_each(|piece| frame(out, FRAME_BODY, route.channel, piece));
}

/// Where a message goes.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// The channel.
    pub channel: u16,
    /// Exchange, "" for the default one.
    pub exchange: &'a str,
    /// Routing key.
    pub key: &'a str,
    /// Return it when no queue takes it.
    pub mandatory: bool,
}

fn named(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(&[0, 0]);
    short_string(out, name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_is_these_bytes() {
        let mut out = Vec::new();
        ack(&mut out, 1, 5, true);
        assert_eq!(out, [1, 0, 1, 0, 0, 0, 13, 0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 5, 1, 0xCE]);
    }

    #[test]
    fn a_body_is_cut_at_frame_max() {
        let mut out = Vec::new();
        let route = Route { channel: 1, exchange: "", key: "q", mandatory: false };
        publish(&mut out, route, &[7; 25], 18);
        let bodies: Vec<usize> =
            out.windows(3).enumerate().filter(|(_, w)| *w == [3, 0, 1]).map(|(at, _)| usize::from(out[at + 6])).collect();
        assert_eq!(bodies, [10, 10, 5]);
    }
}
