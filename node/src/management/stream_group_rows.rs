//! Columns of rabbitmq-streams' `list_stream_consumer_groups`, `list_stream_group_consumers` and `list_stream_tracking`. Used by `admin`.

use super::client_rows::pid;
use super::rows::{Listed, plain, text, unknown};
use super::source::StreamGroupRow;
use crate::model::Offset;
use crate::model::consumer_group::{GroupMember, Turn};
use crate::model::stream::StreamMemory;
use std::collections::HashMap;
use warren_proto::admin::{Cell, ListReply, ListRequest};

impl Listed for StreamGroupRow {
    const COLUMNS: &'static [&'static str] = &["stream", "reference", "partition_index", "consumers"];
    const DEFAULT: &'static [&'static str] = Self::COLUMNS;

    fn cell(&self, column: &str) -> Cell {
        match column {
            "stream" => text(&self.stream),
            "reference" => text(&self.state.name.name),
            // RabbitMQ's word for a stream of its own.
            "partition_index" => self.state.partition.map_or_else(|| plain(-1), plain),
            "consumers" => plain(self.state.members.len()),
            _ => unknown(),
        }
    }
}

/// Names of connections by pid.
pub(super) type Names = HashMap<String, Cell>;

/// What is asked of every node to know their connections' names.
pub(super) fn ask_names() -> ListRequest {
    let columns = ["pid", "name"].map(str::to_owned).into();
    ListRequest { what: "connections".to_owned(), columns, local: true, ..ListRequest::default() }
}

/// The answers.
pub(super) fn names(listed: Vec<ListReply>) -> Names {
    let rows = listed.into_iter().flat_map(|reply| reply.rows);
    rows.filter_map(|row| <[Cell; 2]>::try_from(row.cells).ok()).map(|[pid, name]| (pid.text, name)).collect()
}

/// A member of a group.
pub(super) struct MemberRow {
    member: GroupMember,
    turn: Turn,
    connection: Option<Cell>,
}

/// All of a group, in the order in which they came.
pub(super) fn members(group: &StreamGroupRow, names: &Names) -> Vec<MemberRow> {
    let row = |(member, turn): &(GroupMember, Turn)| {
        let connection = names.get(&pid(member.owner.node, member.owner.connection)).cloned();
        MemberRow { member: *member, turn: *turn, connection }
    };
    group.state.members.iter().map(row).collect()
}

impl Listed for MemberRow {
    const COLUMNS: &'static [&'static str] = &["subscription_id", "connection_name", "state"];
    const DEFAULT: &'static [&'static str] = Self::COLUMNS;

    fn cell(&self, column: &str) -> Cell {
        match column {
            "subscription_id" => plain(self.member.subscription),
            "connection_name" => self.connection.clone().unwrap_or_else(unknown),
            "state" => text(match self.turn {
                Turn::Active => "active",
                Turn::Waiting | Turn::Yielding => "inactive",
            }),
            _ => unknown(),
        }
    }
}

/// What a stream remembers of a reader, or of a publisher.
pub(super) enum TrackingRow<'a> {
    Reader(&'a str, Offset),
    Publisher { name: &'a str, chunk: Offset, id: u64 },
}

/// `what`: `stream_tracking_offset` and `stream_tracking_writer` are one half each.
pub(super) fn tracking<'a>(what: &str, memory: &'a StreamMemory) -> Vec<TrackingRow<'a>> {
    let readers = memory.readers.iter().map(|(name, offset)| TrackingRow::Reader(name, *offset));
    let publishers = memory.publishers.iter().map(|(name, chunk, id)| TrackingRow::Publisher { name, chunk: *chunk, id: *id });
    let (mut rows, mut writers): (Vec<_>, Vec<_>) = (readers.collect(), publishers.collect());
    match what {
        "stream_tracking_offset" => writers.clear(),
        "stream_tracking_writer" => rows.clear(),
        _both => {}
    }
    rows.append(&mut writers);
    rows
}

impl Listed for TrackingRow<'_> {
    const COLUMNS: &'static [&'static str] = &["type", "name", "offset", "offset (sequence)"];
    const DEFAULT: &'static [&'static str] = &["type", "name", "offset (sequence)"];

    fn cell(&self, column: &str) -> Cell {
        match (self, column) {
            (TrackingRow::Reader(..), "type") => text("offset"),
            (TrackingRow::Publisher { .. }, "type") => text("writer"),
            (TrackingRow::Reader(name, _) | TrackingRow::Publisher { name, .. }, "name") => text(name),
            (TrackingRow::Reader(_, offset), _) => plain(offset.0),
            (TrackingRow::Publisher { chunk, id, .. }, _) => text(&format!("{} ({id})", chunk.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::list;
    use super::*;
    use crate::model::catalog::Owner;
    use crate::model::consumer_group::{GroupName, GroupState};
    use crate::model::{ConnectionId, Incarnation, NodeId, QueueId};

    fn texts<T: Listed>(items: &[T], columns: &[&str]) -> Vec<Vec<String>> {
        let reply = list(items, columns.iter().map(|column| (*column).to_owned()).collect()).unwrap();
        reply.rows.into_iter().map(|row| row.cells.into_iter().map(|cell| cell.text).collect()).collect()
    }

    fn group(partition: Option<u32>) -> StreamGroupRow {
        let member = |node: u16, connection: u64| {
            let owner = Owner { node: NodeId(node), incarnation: Incarnation(1), connection: ConnectionId(connection) };
            GroupMember { owner, subscription: 4 }
        };
        let members = vec![(member(1, 7), Turn::Active), (member(2, 7), Turn::Waiting), (member(3, 1), Turn::Yielding)];
        let name = GroupName { stream: QueueId(1), name: "g".into() };
        StreamGroupRow { stream: "s".into(), state: GroupState { name, partition, members } }
    }

    #[test]
    fn groups_and_their_members_read_as_in_rabbitmq_streams() {
        assert_eq!(texts(&[group(None), group(Some(2))], &[]), [["s", "g", "-1", "3"], ["s", "g", "2", "3"]]);
        let listed = |pid: &str, name: &str| {
            let row = warren_proto::admin::Row { cells: vec![text(pid), text(name)] };
            ListReply { columns: ask_names().columns, rows: vec![row] }
        };
        let names = names(vec![listed("<2.7.0>", "b"), listed("<1.7.0>", "a")]);
        let rows = texts(&members(&group(None), &names), &[]);
        assert_eq!(rows, [["4", "a", "active"], ["4", "b", "inactive"], ["4", "", "inactive"]], "nobody knows the third connection");
    }

    #[test]
    fn what_a_stream_remembers_reads_as_in_rabbitmq_streams() {
        let readers = vec![("r".to_owned(), Offset(9))];
        let memory = StreamMemory { readers, publishers: vec![("p".to_owned(), Offset(5), 77)] };
        let (reader, writer) = (["offset", "r", "9"], ["writer", "p", "5 (77)"]);
        assert_eq!(texts(&tracking("stream_tracking", &memory), &[]), [reader, writer]);
        assert_eq!(texts(&tracking("stream_tracking_offset", &memory), &["type", "name", "offset"]), [reader]);
        assert_eq!(texts(&tracking("stream_tracking_writer", &memory), &[]), [writer]);
    }
}
