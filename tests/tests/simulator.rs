//! Seeds through the simulator: production code of three nodes over disks and a network that fail. `WARREN_TEST_SEED` runs one seed,
//! `WARREN_SIM_FIRST` and `WARREN_SIM_SEEDS` another stretch of them, `WARREN_SIM_TOGETHER` so many at a time; `RUST_LOG` shows the
//! nodes' logs.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use warren_tests::sim::{self, Summary};

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn seeds_lose_nothing_whatever_fails() {
    // Silent unless asked: a killed node complains a lot.
    let filter = tracing_subscriber::EnvFilter::builder().with_default_directive(tracing::level_filters::LevelFilter::OFF.into());
    let filter = filter.from_env_lossy();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).try_init();
    let one = variable("WARREN_TEST_SEED");
    let first = one.or(variable("WARREN_SIM_FIRST")).unwrap_or(1);
    let count = if one.is_some() { 1 } else { variable("WARREN_SIM_SEEDS").unwrap_or(50) };
    let together = variable("WARREN_SIM_TOGETHER").unwrap_or(4).min(count);
    let (next, failures) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    let total = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..together {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    match sim::run(seed) {
                        Ok(summary) => {
                            println!("seed {seed}: {summary:?}");
                            let mut total = total.lock().unwrap();
                            total.confirmed += summary.confirmed;
                            total.delivered += summary.delivered;
                            total.records += summary.records;
                            total.names += summary.names;
                            total.relocated_bytes += summary.relocated_bytes;
                            total.starved += summary.starved;
                        }
                        Err(failure) => {
                            println!("{}\n", failure.0);
                            failures.lock().unwrap().push(seed);
                        }
                    }
                }
            });
        }
    });
    let (total, failures) = (total.into_inner().unwrap(), failures.into_inner().unwrap());
    println!("{count} seeds from {first}: {total:?}");
    assert!(failures.is_empty(), "seeds {failures:?} failed, see above");
    // In a run of seconds few messages stay behind in an old file: about one run in thirty cleans one. `relocation.rs` does each time.
    let cleaned = total.relocated_bytes > 0 || count < 500;
    assert!(
        total.confirmed > 100 * count && total.records > 100 * count && total.names > 0 && cleaned,
        "so little happened that it proves nothing: {total:?}"
    );
}

#[test]
fn a_name_means_the_same_on_every_node_however_far_their_catalogs_lag() {
    let seed = variable("WARREN_TEST_SEED").unwrap_or(1);
    match sim::lag(seed) {
        Ok(behind) => assert!(behind > 20, "catalogs were behind at {behind} looks only: it proves nothing"),
        Err(failure) => panic!("{}", failure.0),
    }
}
