//! Answers of the edge as responses of the protocol.

use super::codes;
use crate::model::stream::StreamState;
use crate::model::stream_step::{Answer, Failure, Places};
use crate::wire::stream::server::{Broker, StreamMetadata};
use crate::wire::stream::{Code, Key, Output};
use std::sync::Arc;

/// A reference to no broker.
const NOBODY: u16 = u16::MAX;

/// Writes the response of `key`, with ports for a client that speaks TLS or does not.
pub(super) fn write(key: Key, correlation: u32, answer: Result<Answer, Failure>, over_tls: bool, out: &mut Output) {
    match (key, answer) {
        (Key::Metadata, Ok(Answer::Places(places))) => metadata(correlation, &places, over_tls, out),
        (Key::Metadata, _) => out.metadata(correlation, &[], &[]),
        (Key::StreamStats, Ok(Answer::State(state))) => out.stats(correlation, Code::Ok, &stats(&state)),
        (Key::StreamStats, other) => out.stats(correlation, code(&other), &[]),
        (Key::Route | Key::Partitions, Ok(Answer::Streams(streams))) => texts(key, correlation, Code::Ok, &streams, out),
        (Key::Route | Key::Partitions, other) => texts(key, correlation, code(&other), &[], out),
        (Key::QueryPublisherSequence, Ok(Answer::State(state))) => {
            // RabbitMQ does not tell a publisher that is not known from one that is at 0.
            out.number(key, correlation, Code::Ok, state.publishing_id.unwrap_or(0));
        }
        (Key::QueryOffset, Ok(Answer::State(StreamState { stored: Some(offset), .. }))) => {
            out.number(key, correlation, Code::Ok, offset.0);
        }
        (Key::QueryOffset, Ok(_)) => out.number(key, correlation, Code::NoOffset, 0),
        (Key::QueryPublisherSequence | Key::QueryOffset, other) => out.number(key, correlation, code(&other), 0),
        (Key::ResolveOffsetSpec, Ok(Answer::Resolved(offset))) => out.resolved(correlation, Code::Ok, offset.0),
        (Key::ResolveOffsetSpec, other) => out.resolved(correlation, code(&other), 0),
        (_, other) => out.respond(key, correlation, code(&other)),
    }
}

fn code(answer: &Result<Answer, Failure>) -> Code {
    match answer {
        Ok(_) => Code::Ok,
        Err(failure) => codes::of(*failure),
    }
}

fn texts(key: Key, correlation: u32, code: Code, streams: &[Arc<str>], out: &mut Output) {
    let streams: Vec<&str> = streams.iter().map(|stream| &**stream).collect();
    out.texts(key, correlation, code, &streams);
}

fn metadata(correlation: u32, places: &Places, over_tls: bool, out: &mut Output) {
    let brokers: Vec<Broker<'_>> = places
        .brokers
        .iter()
        .zip(0..)
        .map(|(broker, reference)| Broker { reference, host: &broker.host, port: broker.port(over_tls).into() })
        .collect();
    let streams: Vec<StreamMetadata<'_>> = places
        .streams
        .iter()
        .map(|(stream, place)| match place {
            Ok(place) => {
                StreamMetadata { stream, code: Code::Ok as u16, leader: place.leader.unwrap_or(NOBODY), replicas: place.replicas.clone() }
            }
            Err(failure) => StreamMetadata { stream, code: codes::of(*failure) as u16, leader: NOBODY, replicas: Vec::new() },
        })
        .collect();
    out.metadata(correlation, &brokers, &streams);
}

/// What RabbitMQ's clients look for: chunk ids are first offsets of chunks, -1 where there is none.
fn stats(state: &StreamState) -> [(&'static str, i64); 4] {
    let last_chunk = state.last_chunk.map_or(-1, |chunk| chunk.0 as i64);
    let (first, last) = match state.last_chunk {
        Some(_) => (state.first.0 as i64, state.next.0 as i64 - 1),
        None => (-1, -1),
    };
    [("first_chunk_id", first), ("last_chunk_id", last_chunk), ("committed_chunk_id", last_chunk), ("committed_offset", last)]
}
