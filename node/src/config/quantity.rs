//! Sizes and times as people write them: `1GiB`, `512MB`, `10s`, `500ms`. For `config` only.

use super::ConfigError;
use std::time::Duration;

const SIZES: [(&str, u64); 8] =
    [("B", 1), ("", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("KB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
const TIMES_MS: [(&str, u64); 3] = [("ms", 1), ("s", 1_000), ("m", 60_000)];

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()))?.1;
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// A number of bytes.
pub(super) fn bytes(option: &'static str, text: &str) -> Result<u64, ConfigError> {
    scaled(text, &SIZES)
        .ok_or_else(|| ConfigError::Value { option, why: format!("{text:?} is not a size; write for example 1GiB or 500MB") })
}

/// A length of time, above zero.
pub(super) fn duration(option: &'static str, text: &str) -> Result<Duration, ConfigError> {
    scaled(text, &TIMES_MS)
        .filter(|ms| *ms > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| ConfigError::Value { option, why: format!("{text:?} is not a time; write for example 10s or 500ms") })
}
