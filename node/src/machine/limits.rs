//! What leaves a queue by itself: messages beyond its limit and messages whose time ended, always from the front of what is ready.
//! Which messages are with consumers only the leader knows; it says so in the entry (`Op::Tend`), and delivers nothing meanwhile that
//! such an entry could take away (rule 24). Where an entry says nothing, a queue that drops messages keeps whatever may be with a consumer,
//! and one that refuses them counts all of it as waiting.

use super::exits::Exits;
use super::notes::{AT_ONCE, Note};
use super::queue::Queue;
use super::stores;
use crate::model::entry::{EnqueueOp, SettleReason};
use crate::model::link::Ranges;
use crate::model::settings::{Overflow, QueueSettings};
use crate::model::{QueueId, Seq};

/// What an entry is applied on.
#[derive(Clone, Debug, Default)]
pub(super) struct Basis {
    /// Messages beyond the limit that consumers take at once.
    room: u64,
    checked: Ranges,
    /// Live messages in `checked` and the bytes of their bodies; `None`: to be counted.
    out: Option<(u64, u64)>,
}

/// The bases of one entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Bases(Vec<(QueueId, Basis)>);

impl Bases {
    /// Another entry.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The leader names it.
    pub fn named(&mut self, id: QueueId, queue: &Queue, room: u32, mut checked: Ranges) -> &mut Basis {
        checked.sort_unstable();
        // A message that comes later in the entry is with nobody.
        checked.retain_mut(|range| {
            range.1 = range.1.min(queue.tail());
            range.0 <= range.1
        });
        self.0.retain(|(of, _)| *of != id);
        self.0.push((id, Basis { room: room.into(), checked, out: None }));
        &mut self.0.last_mut().expect("it was just put there").1
    }

    /// A queue's.
    pub fn of(&mut self, id: QueueId, queue: &Queue) -> &mut Basis {
        let at = match self.0.iter().position(|(of, _)| *of == id) {
            Some(at) => at,
            None => {
                // Nobody is to lose what may be with a consumer; nobody is to get in on the strength of it.
                let drops = queue.settings().is_some_and(|s| s.overflow == Overflow::DropHead);
                let last = if drops { queue.reserved().min(queue.tail()) } else { Seq(0) };
                let checked = if last > Seq(0) { vec![(Seq(1), last)] } else { Ranges::new() };
                self.0.push((id, Basis { checked, ..Basis::default() }));
                self.0.len() - 1
            }
        };
        &mut self.0[at].1
    }

    /// Messages left the queue otherwise.
    pub fn changed(&mut self, id: QueueId) {
        self.0.iter_mut().filter(|(of, _)| *of == id).for_each(|(_, basis)| basis.out = None);
    }
}

impl Basis {
    /// Ready messages and the bytes of their bodies.
    fn ready(&mut self, queue: &Queue) -> (u64, u64) {
        let (count, bytes) = *self.out.get_or_insert_with(|| {
            let out = queue.count_in(&self.checked);
            (out.count, out.body_bytes)
        });
        (queue.live_count() - count, queue.live_body_bytes().saturating_sub(bytes))
    }
}

/// Ready messages beyond what the queue may hold.
fn excess(queue: &Queue, basis: &mut Basis) -> u64 {
    let Some(settings) = queue.settings().filter(|s| s.overflow == Overflow::DropHead) else { return 0 };
    let (count, bytes) = basis.ready(queue);
    let beyond = settings.max_length.map_or(0, |max| count.saturating_sub(max.saturating_add(basis.room)));
    let heavy = settings.max_length_bytes.is_some_and(|max| bytes > max) && count > basis.room;
    beyond.max(heavy.into())
}

/// Whether one more message does not fit. `coming`: others that come before it, and the bytes of all their bodies and its own.
pub(super) fn is_full(queue: &Queue, basis: &mut Basis, coming: (u64, u64)) -> bool {
    let Some(settings) = queue.settings() else { return false };
    let (count, bytes) = basis.ready(queue);
    let long = settings.max_length.is_some_and(|max| count + coming.0 >= max.saturating_add(basis.room));
    let heavy = settings.max_length_bytes.is_some_and(|max| bytes + coming.1 > max);
    long || (heavy && count + coming.0 >= basis.room)
}

/// What a queue with these settings notes of a message that comes at `now_ms`.
pub(super) fn note_of(settings: Option<&QueueSettings>, op: &EnqueueOp, now_ms: u64) -> Note {
    if let Some(store) = settings.and_then(|s| s.store) {
        return stores::note(store, op, now_ms);
    }
    let ttl = settings.and_then(|s| s.message_ttl_ms).into_iter().chain(op.traits.expiration_ms).min();
    let deadline_ms = match ttl {
        None => 0,
        Some(0) => AT_ONCE,
        Some(ttl) => now_ms.saturating_add(ttl).max(AT_ONCE + 1),
    };
    Note { deadline_ms, body_bytes: op.body_bytes() }
}

/// Whether a queue refuses a message of this note. `coming`: what transactions that are not decided yet bring before it.
pub(super) fn refuses(
    settings: Option<&QueueSettings>,
    queue: &Queue,
    note: Note,
    id: QueueId,
    (bases, coming): (&mut Bases, (u64, u64)),
) -> bool {
    let Some(settings) = settings.filter(|s| s.is_limited()) else { return false };
    match settings.overflow {
        Overflow::DropHead => false,
        Overflow::RejectPublish | Overflow::RejectPublishDlx => {
            is_full(queue, bases.of(id, queue), (coming.0, coming.1 + u64::from(note.body_bytes)))
        }
    }
}

/// The oldest ready messages go, highest priority first, until the rest fits, or as many as may in one entry. True when any went.
pub(super) fn trim(id: QueueId, queue: &mut Queue, basis: &mut Basis, exits: &mut Exits) -> bool {
    let mut any = false;
    loop {
        let excess = excess(queue, basis).min(exits.may_leave(id, queue, SettleReason::MaxLength));
        if excess == 0 {
            return any;
        }
        let head = (0..queue.levels()).rev().find_map(|level| queue.first_ready(level, Seq(0), &basis.checked));
        let Some(run) = head else { return any };
        let count = u64::from(run.count).min(excess);
        exits.leave(id, queue, (run.first, Seq(run.first.0 + count - 1)), SettleReason::MaxLength);
        exits.left(count);
        any = true;
    }
}

/// Messages whose time ended by `now_ms` go from the front of each priority, as many as may in one entry. True when any went.
pub(super) fn expire(id: QueueId, queue: &mut Queue, basis: &Basis, now_ms: u64, exits: &mut Exits) -> bool {
    let mut any = false;
    for level in 0..queue.levels() {
        while let Some(run) = queue.first_ready(level, Seq(0), &basis.checked) {
            let count = u64::from(run.count).min(exits.may_leave(id, queue, SettleReason::Expired));
            if run.deadline_ms == 0 || run.deadline_ms > now_ms || count == 0 {
                break;
            }
            exits.leave(id, queue, (run.first, Seq(run.first.0 + count - 1)), SettleReason::Expired);
            exits.left(count);
            any = true;
        }
    }
    any
}
