//! What other people's clients rely on, each through a node that does not lead the queue: confirms, returns, prefetch, requeue, and a
//! way back after its node was killed.
#![allow(clippy::unwrap_used)] // all of this file is tests

mod with_lapin;

use warren_tests::client::Field;
use warren_tests::clients::{STEPS, Scene, go_client, leave_out, node_client, python_client};

fn play_python(test: &str, program: &str) {
    let program = python_client(program);
    let Some(scene) = Scene::start(test, &[]) else { return };
    scene.play(program, &[], &STEPS);
    scene.finish();
}

#[test]
fn pika_works() {
    play_python("pika_works", "with_pika.py");
}

#[test]
fn aio_pika_works() {
    play_python("aio_pika_works", "with_aio_pika.py");
}

#[test]
fn kombu_works() {
    play_python("kombu_works", "with_kombu.py");
}

#[test]
fn rabbitpy_works() {
    play_python("rabbitpy_works", "with_rabbitpy.py");
}

#[test]
fn celery_works() {
    let program = python_client("with_celery.py");
    let Some(scene) = Scene::start("celery_works", &[("x-max-priority", Field::Int(10))]) else { return };
    scene.play(program, &[], &[STEPS.as_slice(), &["result", "priority", "eta", "beat"]].concat());
    scene.finish();
}

/// There Celery builds its delays from queues: 28 of them, with times to live of up to four years, each the dead letter target of the next.
#[test]
fn celery_delays_work_on_quorum_queues() {
    let program = python_client("with_celery.py");
    let Some(scene) = Scene::start("celery_delays_work_on_quorum_queues", &[("x-queue-type", Field::Text("quorum".into()))]) else {
        return;
    };
    scene.play(program, &["quorum"], &["result", "eta", "requeue"]);
    scene.finish();
}

#[test]
fn amqplib_works() {
    let program = match node_client("amqplib") {
        Ok(program) => program,
        Err(why) => return leave_out("amqplib_works", &why),
    };
    let Some(scene) = Scene::start("amqplib_works", &[]) else { return };
    scene.play(program, &[], &STEPS);
    scene.finish();
}

#[test]
fn amqp091_go_works() {
    let folder = tempfile::tempdir().unwrap();
    let program = match go_client(folder.path()) {
        Ok(program) => program,
        Err(why) => return leave_out("amqp091_go_works", &why),
    };
    let Some(scene) = Scene::start("amqp091_go_works", &[]) else { return };
    scene.play(program, &[], &STEPS);
    scene.finish();
}

#[test]
fn lapin_works() {
    let Some(scene) = Scene::start("lapin_works", &[]) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(with_lapin::act(&scene));
    scene.finish();
}
