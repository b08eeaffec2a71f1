//! What a panic does to the process that `warren server` runs in. The test starts itself again as a child, for the hook belongs to a
//! process.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::time::Duration;
use warren::model::panics::contained_task;
use warren::telemetry::end_on_panic;

const CHILD: &str = "WARREN_TEST_PANICS_IN";
const SIGABRT: i32 = 6;

fn fail() {
    panic!("on purpose")
}

/// Not a test of its own: the child.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(place) = std::env::var(CHILD) else { return };
    end_on_panic(true);
    let ended = match place.as_str() {
        "a client's task" => tokio::spawn(contained_task(async { fail() })).await,
        "a task" => tokio::spawn(async { fail() }).await,
        _ => tokio::task::spawn_blocking(|| drop(std::thread::spawn(fail).join())).await,
    };
    // Were it still to end, it would by now.
    tokio::time::sleep(Duration::from_millis(50)).await;
    println!("still there: {}", ended.is_err());
}

fn run(place: &str) -> Output {
    let this = std::env::current_exe().expect("the test's own file");
    Command::new(this).args(["--exact", "child", "--nocapture"]).env(CHILD, place).output().expect("a child")
}

#[test]
fn a_panic_ends_the_process_except_in_a_clients_conversation() {
    for place in ["a task", "a thread"] {
        let output = run(place);
        assert_eq!(output.status.signal(), Some(SIGABRT), "{place}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("on purpose"), "{place}: {output:?}");
    }
    let output = run("a client's task");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("still there: true"), "{output:?}");
}
