//! A hash of what a message is spread by. The same on every node and in every version: two nodes must send one key to one queue.
//! FNV-1a with a final mix; keys are clients' own, so nothing is gained by provoking collisions.

use crate::model::catalog::Value;

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// Of bytes.
pub(super) fn of_bytes(bytes: &[u8]) -> u64 {
    mix(fold(OFFSET, bytes))
}

/// Of a header's value; a text and the same bytes as a routing key have the same hash.
pub(super) fn of_value(value: &Value) -> u64 {
    mix(fold_value(OFFSET, value))
}

/// Two hashes as one.
pub(super) fn join(a: u64, b: u64) -> u64 {
    mix(a ^ mix(b ^ OFFSET))
}

fn fold(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

fn fold_value(hash: u64, value: &Value) -> u64 {
    match value {
        Value::Void => hash,
        Value::Bool(b) => fold(hash, &[u8::from(*b)]),
        Value::Int(n) => fold(hash, &n.to_le_bytes()),
        Value::Float(x) => fold(hash, &x.to_bits().to_le_bytes()),
        Value::Double(x) => fold(hash, &x.to_bits().to_le_bytes()),
        Value::Decimal(scale, value) => fold(fold(hash, &[*scale]), &value.to_le_bytes()),
        Value::Text(bytes) | Value::Bytes(bytes) => fold(hash, bytes),
        Value::Timestamp(t) => fold(hash, &t.to_le_bytes()),
        Value::List(values) => values.iter().fold(hash, fold_value),
        Value::Table(table) => table.iter().fold(hash, |hash, (key, value)| fold_value(fold(hash, key.as_bytes()), value)),
    }
}

/// The finalizer of splitmix64: every bit of the input moves every bit of the output.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
