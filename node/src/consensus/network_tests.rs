//! A replication session between a test that plays openraft and one that plays the follower.

use super::*;
use crate::model::LeaderId;
use crate::model::entry::EntryBytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use tokio::sync::mpsc;

const SHARD: ShardId = ShardId(1);
const LEADER: LeaderId = LeaderId { term: 1, voter: 1 };

type Requests = futures::stream::BoxStream<'static, AppendEntriesRequest<Types>>;

struct Play {
    requests_tx: mpsc::Sender<AppendEntriesRequest<Types>>,
    frames_rx: mpsc::Receiver<Frame>,
    answers_tx: mpsc::Sender<Result<Frame, PeerError>>,
    contact: Arc<Contact>,
}

fn play() -> (Session<Requests>, Play) {
    play_over(64)
}

/// Over a stream that takes so many frames which nobody has read.
fn play_over(frames: usize) -> (Session<Requests>, Play) {
    let (requests_tx, requests_rx) = mpsc::channel(64);
    let requests: Requests = Box::pin(futures::stream::unfold(requests_rx, |mut rx| async move { rx.recv().await.map(|next| (next, rx)) }));
    let (tx, frames_rx) = mpsc::channel(frames);
    let (answers_tx, answers_rx) = mpsc::channel(64);
    let rx = futures::stream::unfold(answers_rx, |mut rx| async move { rx.recv().await.map(|answer| (answer, rx)) });
    let contact = Arc::new(Contact::new(1, vec![[1, 2, 3].into()]));
    let acks = Acks { contact: contact.clone(), voter: 2 };
    let session = Session::new(SHARD, requests, Duplex { tx, rx: Box::pin(rx) }, acks);
    (session, Play { requests_tx, frames_rx, answers_tx, contact })
}

fn oid(index: u64) -> Oid {
    Oid { leader_id: Lid { term: 1, node_id: 1 }, index }
}

fn request(prev: u64, entries: std::ops::RangeInclusive<u64>, commit: u64) -> AppendEntriesRequest<Types> {
    let entry = |index| Oentry::new(oid(index), EntryPayload::Normal(Command(EntryBytes::from(Bytes::from_static(b"entry")))));
    let vote = Ovote { leader_id: Lid { term: 1, node_id: 1 }, committed: true };
    let entries = entries.map(entry).collect();
    AppendEntriesRequest { vote, prev_log_id: Some(oid(prev)), entries, leader_commit: Some(oid(commit)) }
}

#[allow(clippy::reversed_empty_ranges)]
fn news(at: u64, commit: u64) -> AppendEntriesRequest<Types> {
    request(at, 1..=0, commit)
}

impl Play {
    fn ask(&self, request: AppendEntriesRequest<Types>) {
        self.requests_tx.try_send(request).expect("the session lives and has room");
    }

    /// The next request on the wire: how many entries, and how far it says is committed.
    async fn frame(&mut self) -> (usize, u64) {
        let (_, request) = wire::read_append(self.frames_rx.recv().await.expect("a frame")).expect("a request");
        (request.entries.len(), request.leader_commit.expect("told").index)
    }

    async fn answer(&self, answer: StreamAppendResult<Types>) {
        self.answers_tx.send(Ok(head_only(wire::write_appended(&answer)))).await.expect("the session lives");
    }
}

/// The follower of a leader that has sent more than was answered.
#[tokio::test]
async fn a_lease_counts_from_the_sending_of_the_request_that_was_answered() {
    let (session, mut play) = play();
    let session = tokio::spawn(session.next());
    play.ask(request(0, 1..=1, 0));
    assert_eq!(play.frame().await, (1, 0));
    let sent = BootTime::now();
    tokio::time::sleep(Duration::from_millis(5)).await;
    // Its answer, when it comes, is none to this one, though it names the same index.
    play.ask(news(1, 1));
    assert_eq!(play.frame().await, (0, 1));
    play.answer(Ok(Some(oid(1)))).await;
    let (answer, session) = session.await.expect("runs").expect("an answer");
    assert_eq!(answer.expect("an answer"), Ok(Some(oid(1))));
    assert!(play.contact.quorum(LEADER).expect("answered") <= sent);
    play.answer(Err(StreamAppendError::Conflict(oid(1)))).await;
    let (_, session) = session.next().await.expect("an answer");
    let renewed = play.contact.quorum(LEADER).expect("answered");
    assert!(renewed > sent, "a follower with another log follows");
    play.ask(request(1, 2..=2, 1));
    let higher = Ovote { leader_id: Lid { term: 2, node_id: 3 }, committed: false };
    play.answer(Err(StreamAppendError::HigherVote(higher))).await;
    let _ = session.next().await;
    assert_eq!(play.contact.quorum(LEADER), Some(renewed), "who follows another one does not acknowledge");
}

#[tokio::test]
async fn news_of_commits_never_stand_in_the_way_of_entries_and_only_the_newest_travels() {
    let (session, mut play) = play();
    play.ask(request(0, 1..=1, 0));
    (1..=3 * WINDOW as u64).for_each(|commit| play.ask(news(1, commit)));
    play.ask(request(1, 2..=2, 100));
    (101..=100 + 3 * WINDOW as u64).for_each(|commit| play.ask(news(2, commit)));
    let session = tokio::spawn(session.next());
    let mut frames = Vec::new();
    for _ in 0..3 {
        frames.push(play.frame().await);
    }
    assert_eq!(frames, [(1, 0), (1, 100), (0, 100 + 3 * WINDOW as u64)]);
    session.abort();
}

#[tokio::test]
async fn a_stream_that_takes_nothing_any_more_is_given_up_in_time() {
    let (session, play) = play_over(2);
    (0..4).for_each(|n| play.ask(request(n, n + 1..=n + 1, 0)));
    let began = Instant::now();
    let failed = tokio::time::timeout(20 * ACK_DEADLINE, session.next()).await.expect("it ends");
    assert!(failed.expect("an answer").0.is_err());
    assert!(began.elapsed() >= ACK_DEADLINE);
}

#[tokio::test]
async fn answers_are_read_while_the_stream_is_full() {
    let (session, mut play) = play_over(1);
    (0..3).for_each(|n| play.ask(request(n, n + 1..=n + 1, 0)));
    let next = tokio::spawn(session.next());
    while play.frames_rx.is_empty() {
        tokio::task::yield_now().await;
    }
    play.answer(Ok(Some(oid(1)))).await;
    let next = tokio::time::timeout(20 * ACK_DEADLINE, next).await.expect("in time");
    let (answer, session) = next.expect("runs").expect("an answer");
    assert_eq!(answer.expect("an answer"), Ok(Some(oid(1))));
    assert_eq!(play.frame().await, (1, 0));
    let session = tokio::spawn(session.next());
    assert_eq!(play.frame().await, (1, 0), "what waited for room goes on");
    session.abort();
}
