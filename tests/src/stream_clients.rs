//! Clients of the stream protocol in other languages: programs of `tests/clients` that get the stream addresses of a cluster's nodes, print
//! `ok STEP` for what they have shown and `kill HOST:PORT` for the node that shall die; they read `killed` when it is dead, and it comes back.

use crate::Cluster;
use crate::clients::Player;
use std::process::Command;
use std::time::{Duration, Instant};

/// What each of them must show.
pub const STEPS: [&str; 6] = ["confirm", "filter", "batch", "super", "single", "reconnect"];
/// A program that is not done by then is ended.
const PATIENCE: Duration = Duration::from_secs(240);

/// Lets a program play to its end on this cluster. It must show these steps.
pub fn play(cluster: &Cluster, mut program: Command, steps: &[&str]) {
    let began = Instant::now();
    let addresses: Vec<String> = (0..cluster.len()).map(|at| format!("127.0.0.1:{}", cluster.ports(at).stream)).collect();
    program.args(&addresses);
    let mut player = Player::start(program);
    let mut shown = Vec::new();
    while let Some(line) = player.line(PATIENCE.saturating_sub(began.elapsed())) {
        println!("  {line}");
        if let Some(step) = line.strip_prefix("ok ") {
            shown.push(step.to_owned());
        }
        if let Some(victim) = line.strip_prefix("kill ") {
            let at = addresses.iter().position(|address| address == victim).unwrap_or_else(|| panic!("{victim} is no node"));
            cluster.kill(at);
            player.say("killed");
            cluster.spawn(at);
        }
    }
    player.end();
    let missing: Vec<_> = steps.iter().filter(|step| !shown.iter().any(|other| other == *step)).collect();
    assert!(missing.is_empty(), "the client ended well without showing {missing:?}");
    println!("played for {:.1} s", began.elapsed().as_secs_f64());
}
