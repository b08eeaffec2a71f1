//! Routing leases (rule 28). A node may route by its copy of the catalog only under a lease of the catalog's leader; the leader answers
//! a catalog command only when every node with an unexpired lease has applied it. So what one node has answered holds on all. Alarms
//! ride along: each node tells the leader what it is short of and learns of all, so that the whole cluster stops publishes. So do clocks: each
//! node finds out how far its own is ahead of the leader's and tells, the leader answers with the median (`time`).

use super::boot::BootTime;
use super::clock;
use super::core::Core;
use super::hearing::{Heard, Hearing};
use super::members::Members;
use super::time::{Clocks, ClusterClock, Verdict};
use super::wire::Ask;
use crate::model::limits::ROUTING_LEASE;
use crate::model::shortage::{Shortage, Shortages};
use crate::model::{Incarnation, LeaderId, NodeId, ShardId};
use crate::peer::transport::head_only;
use crate::peer::{Frame, PeerError};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Renewal period: five chances per lease.
const RENEW: Duration = Duration::from_millis(192);
/// An alarm that is not told again for so long is over: its node is gone.
const ALARM_TIME: Duration = Duration::from_secs(5);

const TOO_OLD: u8 = 0;
const GRANTED: u8 = 1;
const NOT_LEADING: u8 = 2;

const UNHEARD: u8 = 0;
const AGREED: u8 = 1;
const DISPUTED: u8 = 2;

/// Both sides of leases: this node's own, and those it grants while it leads the catalog.
pub(super) struct Leases {
    started: BootTime,
    /// Microseconds after `started` until which this node may route.
    until_us: Arc<AtomicU64>,
    grants: Mutex<Grants>,
    changed: Notify,
    members: Members,
    leader_lease: Duration,
    /// What this node is short of, as bits.
    alarm: AtomicU8,
    /// Nodes with an alarm, as the leader said last.
    alarms_tx: watch::Sender<Shortages>,
    /// The cluster's time.
    clock: ClusterClock,
    /// How far this node's clock is ahead of that of the leader it asked last, ms, and the epoch of that.
    ahead: Mutex<Option<(NodeId, u64, i64)>>,
    /// Something is to be told before the next renewal is due.
    news: Notify,
}

/// What a node knows of its clock.
#[derive(Clone, Copy, Debug)]
enum Ahead {
    /// It is the leader's.
    Own,
    /// So far ahead of the leader's, ms, as that was in this epoch.
    Of(u64, i64),
    Unknown,
}

/// What the catalog's leader says of the time.
#[derive(Clone, Copy, Debug)]
struct Said {
    clock_ms: u64,
    epoch: u64,
    verdict: Verdict,
}

#[derive(Default)]
struct Grants {
    /// As whom this node was last seen to lead the catalog.
    led: Option<LeaderId>,
    /// Since when this node leads the catalog, and the index of its first own entry.
    leading: Option<(Instant, u64)>,
    /// No lease is given to a node that has applied less: that much was answered.
    floor: u64,
    held: BTreeMap<NodeId, Held>,
    /// Who asked for a lease, granted or not.
    hearing: Hearing,
    /// Alarms, and when they were last told.
    alarms: BTreeMap<NodeId, (Shortage, Instant)>,
    clocks: Clocks,
}

#[derive(Clone, Copy)]
struct Held {
    until: Instant,
    applied: u64,
    /// Whose `applied` it is: a restarted process may have applied less than the one before.
    incarnation: Option<Incarnation>,
}

impl Leases {
    pub(super) fn new(members: Members, leader_lease: Duration, clock: ClusterClock) -> Leases {
        let (until_us, grants) = (Arc::new(AtomicU64::new(0)), Mutex::default());
        let (alarm, alarms_tx) = (AtomicU8::new(0), watch::channel(Shortages::new()).0);
        let (ahead, news, started) = (Mutex::default(), Notify::new(), BootTime::now());
        Leases { started, until_us, grants, changed: Notify::new(), members, leader_lease, alarm, alarms_tx, clock, ahead, news }
    }

    /// Whether this node may route now; cheap enough for every batch.
    pub(super) fn check(&self) -> impl Fn() -> bool + Send + Sync + Clone + 'static {
        let (started, until_us) = (self.started, self.until_us.clone());
        move || (started.elapsed().as_micros() as u64) < until_us.load(Ordering::Relaxed)
    }

    /// Granted; counted from when the request was sent.
    fn granted(&self, sent: BootTime) {
        let until = (sent + ROUTING_LEASE).since(self.started).as_micros() as u64;
        self.until_us.fetch_max(until, Ordering::Relaxed);
    }

    /// As whom this node leads the catalog, if it does, having applied it up to `applied`. Compared by the full id: a leadership that was
    /// lost and won again between two looks is a new one, for another leader may have granted and answered meanwhile.
    fn led_as(&self, led: Option<LeaderId>, applied: u64) {
        let before = {
            let known = &mut self.grants.lock().led;
            // Whoever looks may see later what another has seen.
            if led.is_some() && led < *known {
                return;
            }
            std::mem::replace(known, led)
        };
        match led {
            Some(_) if led != before => self.lead(applied),
            None if before.is_some() => self.follow(),
            Some(_) | None => {}
        }
    }

    /// This node leads, or has led just now, as `leader`, whether or not anybody looked since it was elected: what earlier leaderships
    /// knew must not count. False: it has led as somebody newer.
    pub(super) fn caught_up(&self, leader: LeaderId, applied: u64) -> bool {
        let led = self.grants.lock().led;
        if led < Some(leader) {
            self.led_as(Some(leader), applied);
        }
        led <= Some(leader)
    }

    /// This node leads the catalog since now; everything up to `index` may have been answered by earlier leaders.
    fn lead(&self, index: u64) {
        let mut grants = self.grants.lock();
        // A deposed leader may have granted until its own lease ran out: nobody's lease is younger than that.
        let until = Instant::now() + self.leader_lease + ROUTING_LEASE;
        grants.leading = Some((Instant::now(), index));
        grants.floor = grants.floor.max(index);
        grants.hearing = Hearing::default();
        grants.clocks = Clocks::default();
        grants.held = self.members.nodes().into_iter().map(|n| (n, Held { until, applied: 0, incarnation: None })).collect();
        // What the leader before knew stays in force until its nodes had time to tell.
        grants.alarms = self.alarms_tx.borrow().iter().map(|(node, shortage)| (*node, (*shortage, Instant::now()))).collect();
    }

    /// This node does not lead the catalog any more.
    fn follow(&self) {
        self.grants.lock().leading = None;
        self.changed.notify_waiters();
    }

    /// A node asks for a lease, having applied the catalog up to `applied`. The caller has checked the leader's own lease.
    fn grant(&self, node: NodeId, incarnation: Incarnation, applied: u64) -> bool {
        let mut grants = self.grants.lock();
        if grants.leading.is_none() {
            return false;
        }
        if !grants.hearing.hear(node, incarnation) {
            return false;
        }
        let enough = applied >= grants.floor;
        let held = grants.held.entry(node).or_insert(Held { until: Instant::now(), applied: 0, incarnation: None });
        if held.incarnation.replace(incarnation) != Some(incarnation) {
            held.applied = 0;
        }
        held.applied = held.applied.max(applied);
        if enough {
            held.until = Instant::now() + ROUTING_LEASE;
        }
        drop(grants);
        self.changed.notify_waiters();
        enough
    }

    /// The processes that asked for a lease while this node leads the catalog; `None`: it does not.
    pub(super) fn heard(&self) -> Option<Heard> {
        let grants = self.grants.lock();
        let (since, _) = grants.leading?;
        Some(Heard { since, processes: grants.hearing.processes() })
    }

    /// A node tells the leader what it is short of, and learns of all. A node that is silent for long has no alarm any more.
    fn alarms(&self, node: NodeId, shortage: Shortage, now: Instant) -> Shortages {
        let mut grants = self.grants.lock();
        if shortage.is_none() {
            grants.alarms.remove(&node);
        } else {
            grants.alarms.insert(node, (shortage, now));
        }
        grants.alarms.retain(|_, (_, told)| now < *told + ALARM_TIME);
        grants.alarms.iter().map(|(node, (shortage, _))| (*node, *shortage)).collect()
    }

    /// A node's clock is so far ahead of this leader's, if it knows.
    fn clocks(&self, node: NodeId, ahead: Ahead, now: Instant) -> Said {
        let moment = self.clock.moment();
        let mut grants = self.grants.lock();
        let epoch = grants.clocks.look(moment);
        match ahead {
            Ahead::Own => grants.clocks.hear(node, epoch, 0, now),
            Ahead::Of(epoch, ahead) => grants.clocks.hear(node, epoch, ahead, now),
            Ahead::Unknown => {}
        }
        let verdict = grants.clocks.verdict(self.members.nodes().len(), now);
        drop(grants);
        // The leader needs no answer of its own.
        self.clock.told(verdict, 0, moment);
        Said { clock_ms: moment.system_ms, epoch, verdict }
    }

    /// How far this node's clock is ahead of that of `leader`, as far as it knows, and the epoch of that.
    fn ahead_of(&self, leader: NodeId) -> Option<(u64, i64)> {
        self.ahead.lock().filter(|(of, ..)| *of == leader).map(|(_, epoch, ahead)| (epoch, ahead))
    }

    /// The leader answered with its clock and the verdict.
    fn told_clock(&self, leader: NodeId, said: Said, round_trip: Duration) {
        let now = self.clock.moment();
        let Some(ahead) = ClusterClock::ahead_of(now, said.clock_ms, round_trip) else { return };
        let before = self.ahead.lock().replace((leader, said.epoch, ahead));
        if before.is_none_or(|(of, epoch, _)| (of, epoch) != (leader, said.epoch)) {
            self.news.notify_one();
        }
        self.clock.told(said.verdict, ahead, now);
    }

    fn told_alarms(&self, alarms: Shortages) {
        self.alarms_tx.send_if_modified(|known| std::mem::replace(known, alarms.clone()) != alarms);
    }

    /// What this node is short of now; goes out with the next renewal.
    pub(super) fn set_alarm(&self, shortage: Shortage) {
        self.alarm.store(shortage.bits(), Ordering::Relaxed);
    }

    /// Nodes that are short of something.
    pub(super) fn watch_alarms(&self) -> watch::Receiver<Shortages> {
        self.alarms_tx.subscribe()
    }

    /// Until every node that may route has applied `index`; false when this node lost the catalog meanwhile.
    pub(super) async fn visible(&self, index: u64) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let wait = {
                let mut grants = self.grants.lock();
                if grants.leading.is_none() {
                    return false;
                }
                let now = Instant::now();
                let late = grants.held.values().filter(|h| h.applied < index && h.until > now).map(|h| h.until).max();
                match late {
                    None => {
                        grants.floor = grants.floor.max(index);
                        return true;
                    }
                    Some(until) => until,
                }
            };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(wait) => {}
            }
        }
    }
}

/// Keeps this node's lease alive: every `RENEW`, and at once after a new catalog entry was applied (the leader waits for that).
pub(super) async fn keep(core: Arc<Core>) {
    let mut leadership_rx = core.leadership(ShardId::CATALOG);
    let Some(catalog) = core.group(ShardId::CATALOG) else {
        tracing::error!("this node holds no catalog");
        return;
    };
    let mut applied_rx = catalog.applied();
    loop {
        let leadership = *leadership_rx.borrow_and_update();
        let applied = applied_rx.borrow_and_update().map_or(0, |id| id.index);
        core.leases.led_as(leadership.as_me(), applied);
        if let Some(leader) = leadership.leader {
            let renew = renew(core.clone(), leader.node(), applied);
            if leadership.is_me {
                renew.await;
            } else {
                // Not awaited: a slow leader must not delay the report of the next index.
                tokio::spawn(renew);
            }
        }
        tokio::select! {
            () = clock::calm(RENEW) => {}
            () = core.leases.news.notified() => {}
            changed = applied_rx.changed() => if changed.is_err() { return },
            changed = leadership_rx.changed() => if changed.is_err() { return },
        }
    }
}

async fn renew(core: Arc<Core>, leader: NodeId, applied: u64) {
    let sent = BootTime::now();
    let alarm = core.leases.alarm.load(Ordering::Relaxed);
    let ahead = core.leases.ahead_of(leader);
    let (epoch, ahead_ms) = ahead.unwrap_or_default();
    let mut head = BytesMut::with_capacity(32);
    head.put_u64_le(applied);
    head.put_u8(alarm);
    head.put_u8(ahead.is_some().into());
    head.put_u64_le(epoch);
    head.put_i64_le(ahead_ms);
    let answer = if leader == core.me {
        answer_frame(&core, core.me, core.incarnation, head.freeze())
    } else {
        let Some(transport) = core.transport() else { return };
        let question = [&[Ask::Lease as u8][..], &head].concat();
        transport.ask(leader, head_only(question.into()), RENEW * 2).await
    };
    let Ok(mut head) = answer.map(|frame| frame.head) else { return };
    let Ok(granted) = head.try_get_u8() else { return };
    if granted == NOT_LEADING {
        return;
    }
    if granted == GRANTED {
        core.leases.granted(sent);
    }
    let (Ok(clock_ms), Ok(epoch)) = (head.try_get_u64_le(), head.try_get_u64_le()) else { return };
    let (Ok(verdict), Ok(median)) = (head.try_get_u8(), head.try_get_i64_le()) else { return };
    if leader != core.me {
        let verdict = match verdict {
            AGREED => Verdict::Agreed(median),
            DISPUTED => Verdict::Disputed(median),
            _ => Verdict::Unheard,
        };
        core.leases.told_clock(leader, Said { clock_ms, epoch, verdict }, sent.elapsed());
    }
    let alarm = || Some((NodeId(head.try_get_u16_le().ok()?), Shortage::from_bits(head.try_get_u8().ok()?)));
    core.leases.told_alarms(std::iter::from_fn(alarm).collect());
}

/// The leader's side of a renewal.
pub(super) fn answer_frame(core: &Core, node: NodeId, incarnation: Incarnation, mut head: Bytes) -> Result<Frame, PeerError> {
    let malformed = |_| PeerError::Malformed("lease");
    let (applied, alarm) = (head.try_get_u64_le().map_err(malformed)?, head.try_get_u8().map_err(malformed)?);
    let (knows, epoch) = (head.try_get_u8().map_err(malformed)? != 0, head.try_get_u64_le().map_err(malformed)?);
    let ahead_ms = head.try_get_i64_le().map_err(malformed)?;
    let leads = core.group(ShardId::CATALOG).is_some_and(|catalog| {
        let leader = catalog.leadership().borrow().as_me();
        let index = catalog.applied().borrow().map_or(0, |id| id.index);
        leader.is_some_and(|leader| catalog.leased_as() == Some(leader) && core.leases.caught_up(leader, index))
    });
    if !leads {
        return Ok(head_only(Bytes::from_static(&[NOT_LEADING])));
    }
    let granted = core.leases.grant(node, incarnation, applied);
    let ahead = match knows {
        _ if node == core.me => Ahead::Own,
        true => Ahead::Of(epoch, ahead_ms),
        false => Ahead::Unknown,
    };
    let said = core.leases.clocks(node, ahead, Instant::now());
    let (verdict, median) = match said.verdict {
        Verdict::Unheard => (UNHEARD, 0),
        Verdict::Agreed(median) => (AGREED, median),
        Verdict::Disputed(lowest) => (DISPUTED, lowest),
    };
    let mut answer = BytesMut::with_capacity(40);
    answer.put_u8(if granted { GRANTED } else { TOO_OLD });
    answer.put_u64_le(said.clock_ms);
    answer.put_u64_le(said.epoch);
    answer.put_u8(verdict);
    answer.put_i64_le(median);
    for (node, shortage) in core.leases.alarms(node, Shortage::from_bits(alarm), Instant::now()) {
        answer.put_u16_le(node.0);
        answer.put_u8(shortage.bits());
    }
    Ok(head_only(answer.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::time::Sources;
    use crate::model::ports::Clock;

    fn leases() -> Leases {
        Leases::new(Members::founded([NodeId(1), NodeId(2)], 1), Duration::from_millis(400), ClusterClock::new(Sources::default()))
    }

    #[tokio::test]
    async fn a_command_waits_for_every_holder_of_a_lease_or_its_end() {
        let leases = Arc::new(leases());
        leases.lead(5);
        assert!(leases.grant(NodeId(1), Incarnation(1), 5));
        assert!(leases.grant(NodeId(2), Incarnation(1), 5));
        assert!(leases.grant(NodeId(1), Incarnation(1), 6));
        let begun = Instant::now();
        assert!(leases.visible(6).await);
        assert!(begun.elapsed() + Duration::from_millis(50) >= ROUTING_LEASE, "node 2 held a lease");
        assert!(!leases.grant(NodeId(2), Incarnation(1), 5), "6 was answered: no lease for who has not applied it");
        assert!(leases.grant(NodeId(2), Incarnation(1), 6));
        let begun = Instant::now();
        assert!(leases.visible(6).await);
        assert!(begun.elapsed() < Duration::from_millis(500));
    }

    #[tokio::test]
    async fn a_new_leader_believes_that_everybody_holds_a_lease() {
        let leases = leases();
        leases.lead(9);
        let begun = Instant::now();
        assert!(leases.visible(10).await);
        assert!(begun.elapsed() >= ROUTING_LEASE + Duration::from_millis(400));
        leases.follow();
        assert!(!leases.visible(11).await);
    }

    #[tokio::test]
    async fn a_lease_counts_from_the_sending_of_its_request() {
        let leases = leases();
        let may_route = leases.check();
        assert!(!may_route());
        let sent = BootTime::now();
        tokio::time::sleep(Duration::from_millis(600)).await;
        leases.granted(sent);
        assert!(may_route());
        tokio::time::sleep(Duration::from_millis(401)).await;
        assert!(!may_route());
    }

    #[test]
    fn a_leadership_lost_and_won_again_between_two_looks_begins_anew() {
        let leases = leases();
        let in_term = |term| Some(LeaderId { term, voter: 1 });
        let known = || leases.grants.lock().held[&NodeId(2)].applied;
        leases.led_as(in_term(3), 5);
        assert!(leases.grant(NodeId(2), Incarnation(1), 6));
        leases.led_as(in_term(3), 6);
        assert_eq!(known(), 6, "nothing has changed");
        leases.led_as(in_term(5), 8);
        assert_eq!(known(), 0, "the leader between may have granted it a lease for less");
        assert!(!leases.grant(NodeId(2), Incarnation(1), 7), "the leader between may have answered with 8");
        leases.led_as(None, 9);
        assert!(!leases.grant(NodeId(2), Incarnation(1), 9), "it does not lead");
    }

    #[tokio::test]
    async fn a_command_of_a_leadership_that_nobody_has_looked_at_waits_as_a_new_leaders_does() {
        let leases = leases();
        let in_term = |term| LeaderId { term, voter: 1 };
        leases.led_as(Some(in_term(3)), 5);
        assert!([1, 2].iter().all(|node| leases.grant(NodeId(*node), Incarnation(1), 8)));
        // Between, another leader may have given leases to those who had applied 5.
        let begun = Instant::now();
        assert!(leases.caught_up(in_term(5), 8));
        assert!(leases.visible(8).await);
        assert!(begun.elapsed() >= ROUTING_LEASE);
        assert!(leases.caught_up(in_term(5), 9) && !leases.caught_up(in_term(3), 9), "one's own past is over");
    }

    #[test]
    fn a_restarted_process_is_not_taken_for_the_one_that_had_applied_more() {
        let leases = leases();
        leases.lead(5);
        assert!(leases.grant(NodeId(2), Incarnation(1), 8));
        assert!(leases.grant(NodeId(2), Incarnation(2), 6));
        assert_eq!(leases.grants.lock().held[&NodeId(2)].applied, 6, "it routes without 7 and 8");
        assert!(leases.grant(NodeId(2), Incarnation(2), 5), "overtaken by the one before");
        assert_eq!(leases.grants.lock().held[&NodeId(2)].applied, 6);
        assert!(!leases.grant(NodeId(2), Incarnation(1), 9), "late words of the process before");
        assert_eq!(leases.grants.lock().held[&NodeId(2)].applied, 6);
    }

    /// Rule 24: what the others said of a leader's clock says nothing of where it stands since it was set.
    #[test]
    fn a_leader_whose_own_clock_is_set_does_not_believe_it_for_a_moment() {
        const HOUR: u64 = 3_600_000;
        let (system, steady) = (Arc::new(AtomicU64::new(10 * HOUR)), Arc::new(AtomicU64::new(50)));
        let source = |of: &Arc<AtomicU64>| -> crate::consensus::time::Source {
            let of = of.clone();
            Arc::new(move || of.load(Ordering::Relaxed))
        };
        let clock = ClusterClock::new(Sources { system: source(&system), steady: source(&steady) });
        let leases = Leases::new(Members::founded((1..=3).map(NodeId), 1), Duration::from_millis(400), clock.clone());
        leases.lead(5);
        let now = Instant::now();
        let own = || leases.clocks(NodeId(1), Ahead::Own, now);
        let other = |node, epoch, ahead| leases.clocks(NodeId(node), Ahead::Of(epoch, ahead), now).verdict;
        let before = own();
        assert_eq!(leases.clocks(NodeId(2), Ahead::Unknown, now).verdict, Verdict::Unheard);
        assert_eq!(other(2, before.epoch, 20), Verdict::Agreed(10));
        assert!(clock.read().is_sure);
        // The clock is set, an hour ahead.
        steady.fetch_add(100, Ordering::Relaxed);
        system.fetch_add(100 + HOUR, Ordering::Relaxed);
        let set = own();
        assert_eq!((set.verdict, set.clock_ms), (Verdict::Unheard, 11 * HOUR + 100));
        assert_eq!(other(2, before.epoch, 20), Verdict::Unheard, "said of the clock before");
        assert_eq!(other(3, before.epoch, 10), Verdict::Unheard);
        assert!(!clock.read().is_sure && clock.read().clock_ms.is_some_and(|ms| ms.abs_diff(10 * HOUR + 100) < 1000));
        assert_eq!(other(2, set.epoch, 20 - HOUR as i64), Verdict::Disputed(20 - HOUR as i64));
        assert_eq!(other(3, set.epoch, 10 - HOUR as i64), Verdict::Agreed(20 - HOUR as i64), "the median");
        assert!(clock.is_off() && clock.read().clock_ms.is_some_and(|ms| ms.abs_diff(10 * HOUR + 100) < 1000));
    }

    #[test]
    fn the_alarm_of_one_node_is_everybodys_until_it_ends_or_the_node_is_gone() {
        let (leases, now) = (leases(), Instant::now());
        leases.lead(5);
        let (memory, nothing) = (Shortage { memory: true, ..Shortage::default() }, Shortage::default());
        let only = |node| Shortages::from([(NodeId(node), memory)]);
        assert_eq!(leases.alarms(NodeId(2), memory, now), only(2));
        assert_eq!(leases.alarms(NodeId(1), nothing, now), only(2));
        assert_eq!(leases.alarms(NodeId(2), nothing, now), Shortages::new());
        leases.alarms(NodeId(2), memory, now);
        assert_eq!(leases.alarms(NodeId(1), nothing, now + ALARM_TIME), Shortages::new());
        // A new leader goes on with what it was told as a follower.
        leases.told_alarms(only(2));
        assert_eq!(*leases.watch_alarms().borrow(), only(2));
        leases.lead(9);
        assert_eq!(leases.alarms(NodeId(1), nothing, Instant::now()), only(2));
    }
}
