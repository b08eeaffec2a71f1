//! For tests: a machine is what its checkpoints and its snapshot say of it.

use super::shard::DataMachine;
use std::collections::BTreeMap;

/// Checkpoints `machine` to `disk` and goes on with what is read back from there; a snapshot must say the same.
pub(super) fn reread(machine: &mut DataMachine, disk: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    let delta = machine.checkpoint();
    if delta.full {
        disk.clear();
    }
    delta.deletes.iter().for_each(|key| drop(disk.remove(key)));
    disk.extend(delta.puts);
    let shard = machine.shard();
    let restored = DataMachine::restore(shard, disk).unwrap();
    assert_eq!(restored.state_hash(), machine.state_hash());
    assert_eq!(restored.live_entries(), machine.live_entries());
    let copied = DataMachine::from_snapshot(shard, &machine.snapshot()).unwrap();
    assert_eq!(copied.state_hash(), machine.state_hash());
    *machine = restored;
}
