//! What is left of entries is enough for all that is alive, however often they are trimmed: used by the tests of queues, letters and
//! transactions on their logs; here what it costs, and what is read of messages that went meanwhile.

use super::living::Left;
use super::shard::DataMachine;
use super::shard_tests::leader_entry;
use super::{Located, read_run};
use crate::model::entry::trimmed::{Wanted, expand, trim, whole};
use crate::model::entry::{EntryBuilder, EntryBytes, SettleReason};
use crate::model::{LeaderId, LogId, QueueId, Seq, ShardId};

/// Leaves of each entry of a log (from index 1 on) only what the state still needs.
pub(super) fn leave_behind(machine: &mut DataMachine, log: &mut [EntryBytes]) {
    leave_of(machine, (0..).zip(log).skip(1).collect());
}

/// The same of all entries, by index.
pub(super) fn leave_of(machine: &mut DataMachine, log: Vec<(u64, &mut EntryBytes)>) {
    let indices: Vec<u64> = log.iter().map(|(index, _)| *index).collect();
    let survey = machine.begin_survey(&indices);
    let living = machine.capture_rest(survey.capture).unwrap().living(survey);
    assert_eq!(living.applied, machine.applied());
    assert_eq!(living.entries.keys().copied().collect::<Vec<_>>(), machine.live_entries());
    for (index, entry) in log {
        *entry = match living.entries.get(&index) {
            None => EntryBytes::default(),
            Some(Left::Messages(wanted, _)) => {
                let left = expand(&trim(entry, wanted.clone())).unwrap();
                assert_eq!(left.len(), entry.len(), "what is left stands where it stood");
                left
            }
            Some(Left::Whole) => panic!("of entry {index} it is not known what is alive"),
        };
    }
}

fn id(index: u64) -> LogId {
    LogId { leader: LeaderId { term: 1, voter: 1 }, index }
}

/// A thousand messages of 100 bytes, alternately into queue 1 and queue 2.
fn two_queues() -> (DataMachine, EntryBytes) {
    let mut machine = DataMachine::new(ShardId(1));
    let mut first = EntryBuilder::new(1);
    first.advance(0, 1, &[QueueId(1), QueueId(2)], &[]);
    machine.apply(id(1), &first.finish()).unwrap();
    let entry = leader_entry(|ops| {
        (0..1000u64).for_each(|n| {
            ops.enqueue(&[QueueId(1 + n % 2)], b"", b"k", &[0, 0], format!("{n:0100}").as_bytes());
        });
    });
    machine.apply(id(2), &entry).unwrap();
    (machine, entry)
}

fn settle(machine: &mut DataMachine, queue: u64, ranges: &[(Seq, Seq)]) {
    let index = machine.applied().index + 1;
    machine.apply(id(index), &leader_entry(|ops| ops.settle(QueueId(queue), SettleReason::Ack, ranges))).unwrap();
}

fn left(machine: &mut DataMachine, entry: &EntryBytes) -> (EntryBytes, u64) {
    let survey = machine.begin_survey(&[2]);
    let mut living = machine.capture_rest(survey.capture).unwrap().living(survey);
    match living.entries.remove(&2) {
        Some(Left::Messages(wanted, bytes)) => (trim(entry, wanted), bytes),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_stuck_message_costs_little_more_than_itself_and_a_tenth_little_more_than_a_tenth() {
    let (mut machine, entry) = two_queues();
    assert!(left(&mut machine, &entry).0.len() <= entry.len() + 16, "all are alive");
    // Of queue 1 only number 400 stays, of queue 2 nothing.
    settle(&mut machine, 1, &[(Seq(1), Seq(399)), (Seq(401), Seq(500))]);
    settle(&mut machine, 2, &[(Seq(1), Seq(500))]);
    let (stuck, bytes) = left(&mut machine, &entry);
    assert!((100..150).contains(&bytes) && stuck.len() < 200, "{bytes} {}", stuck.len());
    let (mut machine, entry) = two_queues();
    let gone: Vec<(Seq, Seq)> = (0..50).map(|n| (Seq(n * 10 + 1), Seq(n * 10 + 9))).collect();
    [1, 2].into_iter().for_each(|queue| settle(&mut machine, queue, &gone));
    let (tenth, bytes) = left(&mut machine, &entry);
    assert!(bytes as usize <= entry.len() / 10 && tenth.len() < entry.len() / 7, "{bytes} {} of {}", tenth.len(), entry.len());
    // Less and less of the same copy.
    let before = expand(&tenth).unwrap();
    settle(&mut machine, 1, &[(Seq(1), Seq(490))]);
    settle(&mut machine, 2, &[(Seq(1), Seq(500))]);
    let (last, _) = left(&mut machine, &before);
    assert!(last.len() < 200, "{}", last.len());
    let mut found = Vec::new();
    let mut runs = Vec::new();
    machine.queue(QueueId(1)).unwrap().locate(0, Seq(1), 10, &mut runs);
    read_run(&expand(&last).unwrap(), QueueId(1), &runs[0], &mut found);
    assert_eq!((found.len(), found[0].0), (1, Seq(500)));
    assert!(found[0].1.ends_with(format!("{:0100}", 998).as_bytes()));
}

#[test]
fn messages_that_went_since_they_were_located_are_left_out_and_nothing_stands_in_for_them() {
    let (mut machine, entry) = two_queues();
    let mut runs = Vec::new();
    machine.queue(QueueId(1)).unwrap().locate(0, Seq(1), 500, &mut runs);
    settle(&mut machine, 1, &[(Seq(1), Seq(9)), (Seq(20), Seq(498))]);
    let entry = expand(&left(&mut machine, &entry).0).unwrap();
    let read = |run: Located| {
        let mut found = Vec::new();
        read_run(&entry, QueueId(1), &run, &mut found);
        found.into_iter().map(|(seq, message)| (seq.0, message.len())).collect::<Vec<_>>()
    };
    let size = 109;
    let expected: Vec<(u64, usize)> = (10..20).chain(499..=500).map(|seq| (seq, size)).collect();
    assert_eq!(read(runs[0]), expected);
    let at = runs[0];
    assert_eq!(read(Located { first: Seq(15), skip: 14, count: 200, ..at }), expected[5..10]);
    assert_eq!(read(Located { first: Seq(30), skip: 29, count: 5, ..at }), []);
    assert_eq!(read(Located { first: Seq(400), skip: 399, count: 101, ..at }), expected[10..]);
}

#[test]
fn an_entry_that_something_unknown_refers_to_is_kept_whole() {
    let (mut machine, _) = two_queues();
    settle(&mut machine, 1, &[(Seq(1), Seq(400))]);
    let mut survey = machine.begin_survey(&[1, 2, 3]);
    assert_eq!(survey.references, [(2, 2)], "an extent of each queue");
    survey.references[0].1 += 1;
    let living = machine.capture_rest(survey.capture).unwrap().living(survey);
    assert_eq!(living.entries.into_iter().collect::<Vec<_>>(), [(2, Left::Whole)]);
    let nothing = machine.begin_survey(&[]);
    assert!(machine.capture_rest(nothing.capture).unwrap().living(nothing).entries.is_empty());
}

#[test]
fn what_is_left_of_an_entry_is_not_applied() {
    let (mut machine, entry) = two_queues();
    let wanted = Wanted { position: 14, queue: QueueId(2), skip: 3, count: 1 };
    let trimmed = expand(&trim(&entry, vec![wanted])).unwrap();
    assert!(trim(&entry, vec![wanted]).len() < 300, "it is there");
    assert!(machine.apply(id(3), &trimmed).is_err());
    // Nor with a head.
    let mut bytes = trimmed.flatten().to_vec();
    bytes[..14].copy_from_slice(&entry.flatten()[..14]);
    assert!(machine.apply(id(3), &bytes::Bytes::from(bytes).into()).is_err());
    assert_eq!(expand(&whole(&entry)).unwrap().flatten(), entry.flatten());
}
