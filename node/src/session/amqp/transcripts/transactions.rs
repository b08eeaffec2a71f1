//! tx: what waits for a commit, what a rollback brings back, what does not go together.

use super::*;

fn transactional(no_ack: bool) -> Talk {
    let mut talk = Talk::consuming(no_ack);
    talk.say(1, Method::TxSelect {});
    talk.record.clear();
    talk
}

fn ack(delivery_tag: u64, multiple: bool) -> Method {
    Method::BasicAck { delivery_tag, multiple }
}

#[test]
fn publishes_and_settlements_go_out_together_at_the_commit() {
    let mut talk = transactional(false);
    talk.edge(deliver(&[1, 2, 3, 4]));
    talk.record.clear();
    talk.publish(1, b"a");
    talk.say(1, ack(2, true));
    talk.publish(1, b"b");
    talk.say(1, Method::BasicReject { delivery_tag: 3, requeue: false });
    talk.say(1, Method::TxCommit {});
    talk.say(1, get("q"));
    talk.reads(
        "> 1 basic.publish
         = check 1 e
         > 1 basic.ack
         > 1 basic.publish
         = check 1 e
         > 1 basic.reject
         > 1 tx.commit
         = commit 1 2 publishes Ack 1,2 Reject 3
         > 1 basic.get",
    );
    talk.edge(done(1));
    talk.reads(
        "! Reply
         = request 1 get q
         < 1 tx.commit-ok",
    );
    assert_eq!(talk.session.shared.assembling, 0);
}

#[test]
fn a_rollback_forgets_publishes_and_brings_settled_messages_back_under_their_tags() {
    let mut talk = transactional(false);
    talk.edge(deliver(&[1, 2, 3]));
    talk.publish(1, b"a");
    talk.say(1, ack(2, false));
    talk.record.clear();
    talk.say(1, Method::TxRollback {});
    talk.say(1, ack(2, true));
    talk.say(1, Method::TxCommit {});
    talk.edge(done(1));
    talk.say(1, ack(2, false));
    talk.reads(
        "> 1 tx.rollback
         < 1 tx.rollback-ok
         > 1 basic.ack
         > 1 tx.commit
         = commit 1 0 publishes Ack 1,2
         ! Reply
         < 1 tx.commit-ok
         > 1 basic.ack
         = closed 1 holding 3
         < 1 channel.close 406 PRECONDITION_FAILED - unknown delivery tag 2 (60,80)",
    );
    assert_eq!(talk.session.shared.assembling, 0);
}

#[test]
fn a_channel_that_closes_before_its_commit_gives_everything_back() {
    let mut talk = transactional(false);
    talk.edge(deliver(&[1, 2]));
    talk.say(1, ack(1, false));
    talk.publish(1, b"a");
    talk.record.clear();
    talk.say(1, close_method());
    talk.edge(done(1));
    talk.reads(
        "> 1 channel.close
         = request 1 barrier
         ! Reply
         = closed 1 holding 1,2
         < 1 channel.close-ok",
    );
    assert_eq!(talk.session.shared.assembling, 0);
}

#[test]
fn a_missing_exchange_closes_the_channel_at_the_publish() {
    let mut talk = transactional(false);
    talk.publish(1, b"a");
    let refusal = Refusal::NotFound { kind: "exchange".into(), name: "e".into(), vhost: "/".into() };
    talk.edge(Event::ChannelError { channel: 1, refusal, method: (60, 40) });
    talk.reads(
        "> 1 basic.publish
         = check 1 e
         ! ChannelError
         = closed 1 holding
         < 1 channel.close 404 NOT_FOUND - no exchange 'e' in vhost '/' (60,40)",
    );
    assert_eq!(talk.session.shared.assembling, 0);
}

#[test]
fn a_commit_that_fails_closes_the_channel() {
    let mut talk = transactional(false);
    talk.say(1, Method::TxCommit {});
    talk.edge(Event::Reply { channel: 1, result: Err(Refusal::Precondition("partial tx completion".into())) });
    talk.reads(
        "> 1 tx.commit
         = commit 1 0 publishes
         ! Reply
         = closed 1 holding
         < 1 channel.close 406 PRECONDITION_FAILED - partial tx completion (90,20)",
    );
}

#[test]
fn confirms_and_transactions_exclude_each_other() {
    let confirm = || Method::ConfirmSelect { nowait: false };
    for (first, then, text) in [
        (Some(confirm()), Method::TxSelect {}, "cannot switch from confirm to tx mode (90,10)"),
        (Some(Method::TxSelect {}), confirm(), "cannot switch from tx to confirm mode (85,10)"),
        (None, Method::TxCommit {}, "channel is not transactional (90,20)"),
        (None, Method::TxRollback {}, "channel is not transactional (90,30)"),
    ] {
        let mut talk = Talk::open();
        first.into_iter().for_each(|method| talk.say(1, method));
        talk.record.clear();
        let name = then.name();
        talk.say(1, then);
        talk.reads(&format!("> 1 {name}\n= closed 1 holding\n< 1 channel.close 406 PRECONDITION_FAILED - {text}"));
    }
    let mut talk = Talk::open();
    talk.say(1, Method::TxSelect {});
    talk.say(1, Method::TxSelect {});
    talk.reads("> 1 tx.select\n< 1 tx.select-ok\n> 1 tx.select\n< 1 tx.select-ok");
}

#[test]
fn a_transaction_is_bounded() {
    let mut talk = transactional(false);
    talk.publish(1, &vec![0; limits::TRANSACTION_BYTES / 2]);
    talk.publish(1, &vec![0; limits::TRANSACTION_BYTES / 2]);
    let last = talk.record.pop().expect("an answer");
    assert_eq!(last, "< 1 channel.close 406 PRECONDITION_FAILED - transaction larger than 16777216 bytes (60,40)");
    assert_eq!(talk.session.shared.assembling, 0);
}
