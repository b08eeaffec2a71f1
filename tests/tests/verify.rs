//! `warren verify` as a user runs it: a cluster of its own, all faults, an account of every message.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::net::TcpListener;
use std::process::Command;
use warren_tests::cluster::binary;

/// An offset whose ports nobody has now; processes begin at different ones.
fn port_offset() -> u16 {
    let first = std::process::id() % 2_000;
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let offsets = (0..2_000).map(|n| 100 + ((first + n) % 2_000) as u16);
    let all_free = |offset: &u16| [5672, 5552, 8080, 15672, 7671].iter().all(|port| (0..3).all(|node| is_free(port + node + offset)));
    offsets.step_by(10).find(all_free).unwrap()
}

#[test]
fn a_run_with_all_faults_carries_messages_by_all_protocols_and_counts_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let mut verify = Command::new(binary());
    verify
        .args(["verify", "--duration", "20s", "--seed", "4", "--json", "--port-offset", &port_offset().to_string(), "--data-dir"])
        .arg(dir.path());
    let done = verify.output().unwrap();
    let (report, progress) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert_eq!(done.status.code(), Some(0), "{report}\n{progress}");
    println!("{progress}{report}");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["seed"], 4);
    for fault in ["kill", "pause", "wipe", "partition", "clock"] {
        assert!(report["faults"][fault].as_u64().unwrap() > 0, "{fault}");
    }
    let protocols = report["protocols"].as_array().unwrap();
    assert_eq!(protocols.iter().map(|protocol| protocol["name"].as_str().unwrap()).collect::<Vec<_>>(), ["queues", "streams", "rocketmq"]);
    for protocol in protocols {
        assert!(protocol["confirmed"].as_u64().unwrap() > 100 && protocol["delivered"].as_u64().unwrap() > 100, "{protocol}");
        for wrong in ["lost", "ghosts", "repeated", "reordered", "falsely_new"] {
            assert_eq!(protocol[wrong], 0, "{wrong} {protocol}");
        }
    }
    assert!(report["replicas"]["shards"].as_u64().unwrap() >= 4);
    assert_eq!(report["replicas"]["differing"], 0);
}

#[test]
fn a_run_that_cannot_be_is_no_clean_run() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("notes.txt"), "somebody's").unwrap();
    let done = Command::new(binary()).args(["verify", "--data-dir"]).arg(dir.path()).output().unwrap();
    assert_eq!(done.status.code(), Some(2), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(dir.path().join("notes.txt").exists());
    let done = Command::new(binary()).args(["verify", "--nodes", "1"]).output().unwrap();
    assert_eq!(done.status.code(), Some(2));
}
