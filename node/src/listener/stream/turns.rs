//! Members of consumer groups on a connection: what the catalog says of their turns, as news for the session, each once.

use super::StreamConnection;
use crate::model::consumer_group::Turn;
use crate::model::stream_step::Member;

/// What the session believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// The catalog has not heard of it yet.
    Nothing,
    Waiting,
    Active,
    /// It was told to stop; its client has not said yet that it did.
    Stopping,
}

/// A connection's members.
#[derive(Debug, Default)]
pub(super) struct Turns {
    members: Vec<(Member, Told)>,
}

impl Turns {
    pub fn join<C: StreamConnection>(&mut self, member: Member, edge: &mut C) {
        edge.join_group(&member);
        self.members.push((member, Told::Nothing));
    }

    pub fn leave<C: StreamConnection>(&mut self, member: &Member, edge: &mut C) {
        self.members.retain(|(known, _)| known != member);
        edge.leave_group(member);
    }

    /// What is new: subscriptions that become active or stop being active.
    pub fn look<C: StreamConnection>(&mut self, edge: &mut C) -> Vec<(u8, bool)> {
        let mut news = Vec::new();
        for (member, told) in &mut self.members {
            let (before, turn) = (*told, edge.turn(member));
            *told = match (before, turn) {
                (Told::Nothing, None) => Told::Nothing,
                (_, None) => {
                    // This node was taken for dead: others have had their turn. It comes back as a new one.
                    edge.join_group(member);
                    Told::Nothing
                }
                (_, Some(Turn::Waiting)) => Told::Waiting,
                (_, Some(Turn::Active)) => Told::Active,
                (Told::Active | Told::Stopping, Some(Turn::Yielding)) => Told::Stopping,
                (Told::Nothing | Told::Waiting, Some(Turn::Yielding)) => {
                    // It never began.
                    edge.yield_turn(member);
                    Told::Waiting
                }
            };
            match (before == Told::Active, *told == Told::Active) {
                (false, true) => news.push((member.subscription, true)),
                (true, false) => news.push((member.subscription, false)),
                (true, true) | (false, false) => {}
            }
        }
        news
    }
}
