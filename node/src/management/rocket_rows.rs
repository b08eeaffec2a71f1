//! Columns of rocket topics, consumer groups and access keys. Used by `admin`.

use super::rows::{Listed, count, plain, text, unknown};
use super::source::{AccessKeyRow, GroupRow, TopicRow};
use warren_proto::admin::Cell;

impl Listed for TopicRow {
    const COLUMNS: &'static [&'static str] =
        &["name", "partitions", "invisible_ms", "ordered_invisible_ms", "half_invisible_ms", "max_retries"];
    const DEFAULT: &'static [&'static str] = Self::COLUMNS;

    fn cell(&self, column: &str) -> Cell {
        match column {
            "name" => text(&self.name),
            "partitions" => plain(self.settings.partitions),
            "invisible_ms" => count(self.settings.invisible_ms),
            "ordered_invisible_ms" => count(self.settings.ordered_invisible_ms),
            "half_invisible_ms" => count(self.settings.half_invisible_ms),
            "max_retries" => count(self.settings.max_retries.map(u64::from)),
            _ => unknown(),
        }
    }
}

impl Listed for GroupRow {
    const COLUMNS: &'static [&'static str] = &["topic", "group", "messages_ready", "messages_unacknowledged"];
    const DEFAULT: &'static [&'static str] = Self::COLUMNS;

    fn cell(&self, column: &str) -> Cell {
        match column {
            "topic" => text(&self.topic),
            "group" => text(&self.group),
            "messages_ready" => count(self.ready),
            "messages_unacknowledged" => count(self.unacknowledged),
            _ => unknown(),
        }
    }
}

impl Listed for AccessKeyRow {
    const COLUMNS: &'static [&'static str] = &["access_key", "user"];
    const DEFAULT: &'static [&'static str] = Self::COLUMNS;

    fn cell(&self, column: &str) -> Cell {
        match column {
            "access_key" => text(&self.id),
            "user" => text(&self.user),
            _ => unknown(),
        }
    }
}
