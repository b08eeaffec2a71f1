//! What other people's clients of the stream protocol rely on, in a cluster whose nodes they follow as Metadata names them: confirms,
//! filters, batches, super streams, single active consumers, and a way back when the leader of their stream was killed.
#![allow(clippy::unwrap_used)] // all of this file is tests

use warren_tests::Broker;
use warren_tests::clients::{leave_out, node_client, rust_client};
use warren_tests::stream_clients::{STEPS, play};

#[test]
fn rabbitmq_stream_js_client_works() {
    let test = "rabbitmq_stream_js_client_works";
    let program = match node_client("streams_node") {
        Ok(program) => program,
        Err(why) => return leave_out(test, &why),
    };
    let Some(cluster) = Broker::to_harm(test) else { return };
    play(&cluster, program, &STEPS);
}

#[test]
fn rabbitmq_stream_rust_client_works() {
    let test = "rabbitmq_stream_rust_client_works";
    let program = rust_client("streams_rust");
    let Some(cluster) = Broker::to_harm(test) else { return };
    // It makes no batches in one entry.
    let steps: Vec<_> = STEPS.into_iter().filter(|step| *step != "batch").collect();
    play(&cluster, program, &steps);
}
