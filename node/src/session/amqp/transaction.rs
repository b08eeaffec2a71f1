//! tx on one channel: publishes and settlements since tx.select or the last commit or rollback are kept here and go to the edge
//! together. Requeueing by basic.recover is not part of it, as in RabbitMQ.

use super::channel::Channel;
use super::errors::Fault;
use super::requests::Pending;
use super::{Out, Shared};
use crate::model::limits;
use crate::model::step::{Commit, Held, Outcome, Publish, Step};
use crate::wire::amqp::Method;
use bytes::Bytes;

/// What is not committed.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    publishes: Vec<Publish>,
    /// Under the tags that they had, for a rollback.
    settled: Vec<(u64, Held, Outcome)>,
    bytes: usize,
}

impl Transaction {
    pub(super) fn messages(&self) -> u64 {
        self.publishes.len() as u64
    }

    pub(super) fn settlements_kept(&self) -> u64 {
        self.settled.len() as u64
    }

    fn settlements(settled: Vec<(u64, Held, Outcome)>) -> Vec<(Vec<Held>, Outcome)> {
        let mut grouped: Vec<(Vec<Held>, Outcome)> = Vec::new();
        for (_, held, outcome) in settled {
            match grouped.last_mut() {
                Some((group, same)) if *same == outcome && group.last().is_some_and(|last| last.seq < held.seq) => group.push(held),
                Some(_) | None => grouped.push((vec![held], outcome)),
            }
        }
        grouped
    }
}

impl Channel {
    pub(super) fn run_tx(&mut self, method: &Method, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        match method {
            Method::TxSelect {} if self.confirms.is_some() => Err(Fault::precondition("cannot switch from confirm to tx mode")),
            Method::TxSelect {} => {
                self.tx.get_or_insert_default();
                self.say(&Method::TxSelectOk {}, out)
            }
            Method::TxCommit {} => self.commit(shared, out),
            _ => self.rollback(shared, out),
        }
    }

    fn take_tx(&mut self, shared: &mut Shared) -> Result<Transaction, Fault> {
        let tx = self.tx.as_mut().ok_or_else(|| Fault::precondition("channel is not transactional"))?;
        let tx = std::mem::take(tx);
        shared.assembling -= tx.bytes;
        Ok(tx)
    }

    fn commit(&mut self, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        let tx = self.take_tx(shared)?;
        let settlements = Transaction::settlements(tx.settled);
        self.waiting = Some(Pending::Say { ok: Method::TxCommitOk {}, nowait: false, method: Method::TxCommit {}.id() });
        self.published = false;
        out.step(Step::Commit(Box::new(Commit { channel: self.number, publishes: tx.publishes, settlements, is_strict: false })));
        Ok(())
    }

    fn rollback(&mut self, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        let tx = self.take_tx(shared)?;
        self.unsettled.restore(tx.settled.into_iter().map(|(tag, held, _)| (tag, held)));
        self.say(&Method::TxRollbackOk {}, out)
    }

    /// A publish of a transaction; the edge looks at all but its body now. It is copied out of the read buffer, which it would pin.
    pub(super) fn keep_publish(&mut self, publish: Publish, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        let Some(tx) = &mut self.tx else { return Ok(()) };
        let size = publish.properties.len() + publish.body.len();
        if tx.bytes + size > limits::TRANSACTION_BYTES {
            return Err(Fault::precondition(format!("transaction larger than {} bytes", limits::TRANSACTION_BYTES)));
        }
        let size = size + size_of::<Publish>();
        tx.bytes += size;
        shared.assembling += size;
        shared.check_assembling()?;
        let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        let publish = Publish {
            exchange: copy(&publish.exchange),
            routing_key: copy(&publish.routing_key),
            properties: copy(&publish.properties),
            body: copy(&publish.body),
            ..publish
        };
        self.published = true;
        out.step(Step::Check(Publish { body: Bytes::new(), ..publish.clone() }));
        tx.publishes.push(publish);
        Ok(())
    }

    /// A settlement of a transaction. False: the tag is unknown.
    pub(super) fn keep_settlement(&mut self, tag: u64, multiple: bool, outcome: Outcome) -> bool {
        let Some(tx) = &mut self.tx else { return false };
        let mut taken = Vec::new();
        let known = self.unsettled.take_tagged(tag, multiple, &mut taken);
        tx.settled.extend(taken.into_iter().map(|(tag, held)| (tag, held, outcome)));
        known
    }

    /// The channel ends: what was not committed has no effect.
    pub(super) fn drop_tx(&mut self, shared: &mut Shared) {
        if let Ok(tx) = self.take_tx(shared) {
            self.unsettled.restore(tx.settled.into_iter().map(|(tag, held, _)| (tag, held)));
        }
    }
}
