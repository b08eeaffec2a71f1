//! A lane's task: finds the shard's leader, opens a path, says hello, and carries what the lane decides up and what the leader says
//! down, until the path ends; then again. Nothing waits here that the lane could not answer: ticks go on while it connects.

use super::Lane;
use super::answers::{Home, Next};
use crate::model::LeaderId;
use crate::model::link::ToLeader;
use crate::model::ports::{EdgeEnd, Paths};
use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};

const TICK: Duration = Duration::from_millis(100);
const CONNECT: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(100);
/// Messages taken from the leader before the lane looks at what it has to send.
const TURN: usize = 256;

/// Serves `lane` until its home is gone.
pub(in crate::edge) async fn run<H: Home>(
    lane: Arc<Lane>,
    home: Weak<H>,
    mut leaders: watch::Receiver<Option<LeaderId>>,
    paths: Arc<dyn Paths>,
) {
    let mut backoff = BACKOFF_MIN;
    // One clock for all that is tried: paths that end sooner than it ticks must not stop it.
    let mut tick = Instant::now() + TICK;
    while home.strong_count() > 0 {
        let leader = ticking(&lane, &home, &mut tick, known_leader(&mut leaders)).await;
        let Some(leader) = leader else { return };
        let connecting = timeout(CONNECT, paths.connect(lane.shard, leader.node()));
        let Some(connected) = ticking(&lane, &home, &mut tick, connecting).await else { return };
        if let Ok(Ok(end)) = connected {
            let welcomed = converse(&lane, &home, end, leader, &mut leaders, &mut tick).await;
            lane.path_lost();
            if welcomed {
                backoff = BACKOFF_MIN;
            }
        }
        let news = async {
            tokio::select! {
                () = sleep(backoff) => {}
                () = changed(&mut leaders) => {}
            }
        };
        if ticking(&lane, &home, &mut tick, news).await.is_none() {
            return;
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

async fn known_leader(leaders: &mut watch::Receiver<Option<LeaderId>>) -> LeaderId {
    loop {
        if let Some(leader) = *leaders.borrow_and_update() {
            return leader;
        }
        changed(leaders).await;
    }
}

/// Never resolves when nobody can tell any more.
async fn changed(leaders: &mut watch::Receiver<Option<LeaderId>>) {
    if leaders.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits for `future` while the lane's clock runs. `None`: the edge is gone.
async fn ticking<H: Home, T>(lane: &Lane, home: &Weak<H>, tick: &mut Instant, future: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(future);
    loop {
        let out = tokio::select! {
            out = &mut future => Some(out),
            () = sleep_until((*tick).into()) => None,
        };
        ticked(lane, &*home.upgrade()?, tick);
        if out.is_some() {
            return out;
        }
    }
}

/// The lane looks at what waits for too long, when it is time.
fn ticked(lane: &Lane, home: &dyn Home, tick: &mut Instant) {
    let now = Instant::now();
    if now >= *tick {
        lane.tick(home, now);
        *tick = now + TICK;
    }
}

/// One path from hello to its end. True: the leader welcomed this edge.
async fn converse<H: Home>(
    lane: &Lane,
    home: &Weak<H>,
    mut end: EdgeEnd,
    leader: LeaderId,
    leaders: &mut watch::Receiver<Option<LeaderId>>,
    tick: &mut Instant,
) -> bool {
    let hello = ToLeader::Hello { node: lane.config.node, incarnation: lane.config.incarnation };
    let mut waiting = VecDeque::from([hello]);
    let mut out = Vec::new();
    let welcomed = |lane: &Lane| lane.state.lock().leader.is_some();
    if let Some(home) = home.upgrade() {
        home.path_opened();
    }
    lane.stops.store(lane.pulse.beat(), Ordering::Release);
    lane.contact.opened(end.lease.take());
    loop {
        let Some(strong) = home.upgrade() else { return false };
        if lane.is_stale() {
            tracing::warn!(shard = %lane.shard, "this process was stopped for a while; what was on its way to clients is dropped");
            lane.drop_unwritten();
            return welcomed(lane);
        }
        if receive(lane, &*strong, &mut end) == Next::Leave {
            return welcomed(lane);
        }
        ticked(lane, &*strong, tick);
        if waiting.is_empty() {
            lane.collect(&*strong, Instant::now(), &mut out);
            waiting.extend(out.drain(..));
        }
        drop(strong);
        if send(&mut waiting, &end) == Next::Leave {
            return welcomed(lane);
        }
        if wait(lane, home, &mut end, &mut waiting, leader, leaders, *tick).await == Next::Leave {
            return welcomed(lane);
        }
    }
}

fn receive(lane: &Lane, home: &dyn Home, end: &mut EdgeEnd) -> Next {
    for _ in 0..TURN {
        let Ok(message) = end.down_rx.try_recv() else { break };
        if lane.on_message(home, message) == Next::Leave {
            return Next::Leave;
        }
    }
    for _ in 0..TURN {
        let Ok(deliveries) = end.deliveries_rx.try_recv() else { break };
        lane.on_deliveries(home, deliveries);
    }
    Next::Stay
}

fn send(waiting: &mut VecDeque<ToLeader>, end: &EdgeEnd) -> Next {
    while let Some(message) = waiting.pop_front() {
        match end.up_tx.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(message)) => {
                waiting.push_front(message);
                return Next::Stay;
            }
            Err(TrySendError::Closed(_)) => return Next::Leave,
        }
    }
    Next::Stay
}

/// Until there is something to do.
async fn wait<H: Home>(
    lane: &Lane,
    home: &Weak<H>,
    end: &mut EdgeEnd,
    waiting: &mut VecDeque<ToLeader>,
    leader: LeaderId,
    leaders: &mut watch::Receiver<Option<LeaderId>>,
    tick: Instant,
) -> Next {
    let due = match (lane.is_busy().then_some(tick), lane.due()) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let timer = async {
        match due {
            Some(due) => sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
    };
    let full = !waiting.is_empty();
    tokio::select! {
        permit = end.up_tx.reserve(), if full => match (permit, waiting.pop_front()) {
            (Ok(permit), Some(message)) => permit.send(message),
            (Ok(_), None) => {}
            (Err(_), _) => return Next::Leave,
        },
        message = end.down_rx.recv() => match (message, home.upgrade()) {
            (Some(message), Some(home)) => return lane.on_message(&*home, message),
            (None, _) | (_, None) => return Next::Leave,
        },
        deliveries = end.deliveries_rx.recv() => match (deliveries, home.upgrade()) {
            (Some(deliveries), Some(home)) => lane.on_deliveries(&*home, deliveries),
            (None, _) | (_, None) => return Next::Leave,
        },
        () = lane.wake.notified() => {}
        () = changed(leaders) => {
            if leaders.borrow_and_update().is_some_and(|now| now != leader) {
                return Next::Leave;
            }
        }
        () = timer => {}
    }
    Next::Stay
}
