//! Confirms and returns.

use super::*;

#[test]
fn returns_come_before_their_confirm_and_confirms_are_folded() {
    let mut talk = Talk::open();
    talk.say(1, Method::ConfirmSelect { nowait: false });
    for _ in 0..4 {
        talk.publish(1, b"m");
    }
    talk.record.clear();
    let returned = crate::model::step::Publish {
        channel: 1,
        ticket: Some(1),
        mandatory: true,
        exchange: "e".into(),
        routing_key: "k".into(),
        properties: Bytes::from_static(&[0, 0]),
        body: "m".into(),
    };
    talk.session.on_event(Event::Returned(Box::new(returned)), &mut talk.out);
    talk.session.on_event(Event::Confirmed { channel: 1, tickets: vec![(1, 1)] }, &mut talk.out);
    talk.edge(Event::Confirmed { channel: 1, tickets: vec![(2, 2), (4, 4)] });
    talk.edge(Event::Nacked { channel: 1, tickets: vec![(3, 3)] });
    talk.reads(
        "! Confirmed
         < 1 basic.return 312 NO_ROUTE
         < 1 header 1
         < 1 body m
         < 1 basic.ack 2 multiple=true
         < 1 basic.ack 4 multiple=false
         ! Nacked
         < 1 basic.nack 3 multiple=false",
    );
}

#[test]
fn a_confirm_for_a_closed_channel_never_reaches_its_successor() {
    let mut talk = Talk::open();
    talk.say(1, Method::ConfirmSelect { nowait: true });
    talk.publish(1, b"m");
    talk.say(1, close_method());
    talk.edge(done(1));
    talk.say(1, channel_open());
    talk.say(1, Method::ConfirmSelect { nowait: true });
    talk.publish(1, b"m");
    talk.record.clear();
    talk.edge(Event::Confirmed { channel: 1, tickets: vec![(1, 1)] });
    talk.reads("! Confirmed");
}
