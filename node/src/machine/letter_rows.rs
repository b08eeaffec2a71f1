//! The rows of letters in checkpoints and snapshots. Called by `dead`.

use super::codec::{Reader, Writer};
use super::dead::{Dead, DeadLetters, Routed, Row, Waiting};
use super::inlets::Inlets;
use super::queue::Located;
use super::shard::RestoreError;
use crate::model::entry::SettleReason;
use crate::model::letters::{Address, Outlet};
use crate::model::{QueueId, Seq, ShardId};
use std::sync::Arc;

/// counts := last number u64 | n u16 | (target shard u16, last number u64)* | inlets
pub(super) fn encode_counts(letters: &DeadLetters) -> Vec<u8> {
    let mut out = Writer::default();
    out.u64(letters.last);
    out.u16(letters.outlets.len() as u16);
    for (shard, last) in &letters.outlets {
        out.u16(shard.0);
        out.u64(*last);
    }
    letters.inlets.encode(&mut out);
    out.finish()
}

/// The way back.
pub(super) fn decode_counts(letters: &mut DeadLetters, value: &[u8]) -> Result<(), RestoreError> {
    let mut input = Reader::new(value);
    letters.last = input.u64()?;
    for _ in 0..input.u16()? {
        letters.outlets.insert(ShardId(input.u16()?), input.u64()?);
    }
    letters.inlets = Inlets::decode(&mut input)?;
    input.end()
}

/// row := queue u64 | seq u64 | count u32 | index u64 | position u32 | skip u32 | bytes u64 | reason u8 | time_ms u64 | address
///      | routed u8 | way?
/// address := len u32 vhost | len u32 queue's name | len u32 exchange | keyed u8 | len u32 key
/// way := catalog index u64 | n u16 | (shard u16, first u64, n u32, queue u64*)*
pub(super) fn encode_row(row: &Row) -> Vec<u8> {
    let mut out = Writer::with_capacity(96);
    match row {
        Row::Waiting(Waiting { dead, address }) => {
            encode_dead(dead, address, &mut out);
            out.u8(0);
        }
        Row::Routed(routed) => {
            encode_dead(&routed.dead, &routed.address, &mut out);
            out.u8(1);
            encode_way(routed, &mut out);
        }
    }
    out.finish()
}

fn encode_dead(dead: &Dead, address: &Address, out: &mut Writer) {
    out.u64(dead.queue.0);
    out.u64(dead.at.first.0);
    out.u32(dead.at.count);
    out.u64(dead.at.index);
    out.u32(dead.at.position);
    out.u32(dead.at.skip);
    out.u64(dead.bytes);
    out.u8(dead.reason as u8);
    out.u64(dead.time_ms);
    let Address { vhost, queue, exchange, routing_key } = address;
    [vhost, queue, exchange].into_iter().for_each(|text| out.bytes(text.as_bytes()));
    out.u8(routing_key.is_some().into());
    out.bytes(routing_key.as_deref().unwrap_or_default().as_bytes());
}

fn encode_way(routed: &Routed, out: &mut Writer) {
    out.u64(routed.catalog_index);
    out.u16(routed.outlets.len() as u16);
    for outlet in &routed.outlets {
        out.u16(outlet.shard.0);
        out.u64(outlet.first);
        out.u32(outlet.queues.len() as u32);
        outlet.queues.iter().for_each(|q| out.u64(q.0));
    }
}

/// The way back.
pub(super) fn decode_row(value: &[u8]) -> Result<Row, RestoreError> {
    let mut input = Reader::new(value);
    let waiting = decode_dead(&mut input)?;
    let row = match input.u8()? {
        0 => Row::Waiting(waiting),
        1 => Row::Routed(decode_way(waiting, &mut input)?),
        _ => return Err(RestoreError::Malformed("letter")),
    };
    input.end()?;
    Ok(row)
}

fn decode_dead(input: &mut Reader<'_>) -> Result<Waiting, RestoreError> {
    let (queue, first, count) = (QueueId(input.u64()?), Seq(input.u64()?), input.u32()?);
    let (index, position, skip) = (input.u64()?, input.u32()?, input.u32()?);
    let bytes = input.u64()?;
    let reason = SettleReason::from_byte(input.u8()?).ok_or(RestoreError::Malformed("reason of a letter"))?;
    if count == 0 {
        return Err(RestoreError::Malformed("no letter"));
    }
    let at = Located { first, count, index, position, skip, deadline_ms: 0 };
    let dead = Dead { queue, at, bytes, reason, time_ms: input.u64()? };
    let (vhost, queue, exchange) = (text(input)?, text(input)?, text(input)?);
    let keyed = input.u8()? != 0;
    let routing_key = Some(text(input)?).filter(|_| keyed);
    Ok(Waiting { dead, address: Arc::new(Address { vhost, queue, exchange, routing_key }) })
}

fn decode_way(Waiting { dead, address }: Waiting, input: &mut Reader<'_>) -> Result<Routed, RestoreError> {
    let catalog_index = input.u64()?;
    let mut outlets = Vec::new();
    for _ in 0..input.u16()? {
        let (shard, first, n) = (ShardId(input.u16()?), input.u64()?, input.u32()?);
        let queues = (0..n).map(|_| input.u64().map(QueueId)).collect::<Result<_, _>>()?;
        outlets.push(Outlet { shard, first, queues });
    }
    Ok(Routed { dead, catalog_index, address, outlets })
}

fn text(input: &mut Reader<'_>) -> Result<String, RestoreError> {
    String::from_utf8(input.bytes()?.to_vec()).map_err(|_| RestoreError::Malformed("name"))
}
