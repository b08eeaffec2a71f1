"""Celery: a worker and beat as processes of their own, results through the RPC backend, ETA, priorities. The worker finds another node
by itself when its own dies. With `quorum` as the last argument, only what Celery does otherwise on quorum queues."""
import os
import signal
import subprocess
import sys
import tempfile
import time

from stage import *

HERE = os.path.dirname(os.path.abspath(__file__))
folder = tempfile.TemporaryDirectory()
NOTES = os.path.join(folder.name, "notes")
open(NOTES, "w").close()
os.environ.update(WARREN_TEST_NODES=url(FIRST) + " " + url(SECOND), WARREN_TEST_QUEUE=QUEUE, WARREN_TEST_NOTES=NOTES)
QUORUM = sys.argv[4:] == ["quorum"]
os.environ["WARREN_TEST_QUEUE_TYPE"] = "quorum" if QUORUM else "classic"

from amqp.exceptions import ChannelError
from kombu import Connection

from celery_tasks import add, app, hold, late, note, notes, second_time

RETRIES = {"interval_start": 0.05, "interval_step": 0.1, "interval_max": 0.5, "max_retries": 60}


def start(*arguments):
    return subprocess.Popen([sys.executable, "-m", "celery", "-A", "celery_tasks", *arguments], cwd=HERE, stdin=subprocess.DEVNULL)


def stop(process):
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def open_gate(name):
    open(NOTES + name, "w").close()


def waiting():
    """Messages that wait, as the other node counts them."""
    with Connection(url(SECOND)) as connection:
        return connection.default_channel.queue_declare(QUEUE, passive=True).message_count


def held(name):
    hold.delay(name)
    until(lambda: "holding-" + name in notes(), "the worker does not take " + name)


def eta(*delays):
    """Tasks for later: none is early."""
    results = [late.apply_async([time.time() + delay], countdown=delay) for delay in delays]
    lateness = [result.get(timeout=PATIENCE) for result in results]
    assert min(lateness) > -0.1, lateness
    ok("eta")


def act_on_a_quorum_queue():
    assert add.delay(2, 3).get(timeout=PATIENCE) == 5
    ok("result")
    eta(3, 1, 2)
    assert second_time.delay().get(timeout=PATIENCE) == "redelivered"
    ok("requeue")


def act():
    assert add.delay(2, 3).get(timeout=PATIENCE) == 5
    ok("result")

    # One task at a time, and one more of the highest priority while they wait.
    held("one")
    for priority in (1, 5, 9):
        note.apply_async(["priority-%d" % priority], priority=priority)
    assert waiting() == 3, waiting()
    ok("confirm")
    ok("prefetch")
    open_gate("one")
    until(lambda: "priority-1" in notes(), "the worker does not go on")
    assert [text for text in notes() if "priority" in text] == ["priority-9", "priority-5", "priority-1"], notes()
    ok("priority")

    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection, auto_declare=False)
        try:
            note.apply_async(["nobody"], producer=producer, exchange="amq.direct", routing_key=QUEUE, mandatory=True, retry=False)
            raise AssertionError("not returned")
        except ChannelError as error:
            assert error.reply_code == 312, error
    ok("return")

    assert second_time.delay().get(timeout=PATIENCE) == "redelivered"
    ok("requeue")

    eta(1)

    beat = start("beat", "--loglevel=WARNING", "--schedule", os.path.join(folder.name, "schedule"), "--pidfile=")
    try:
        until(lambda: notes().count("tick") >= 3, "beat does not tick")
    finally:
        stop(beat)
    ok("beat")

    held("two")  # the worker has it unacknowledged when its node dies
    kill()
    for n in range(10):
        note.apply_async(["after-%d" % n], retry=True, retry_policy=RETRIES)
    open_gate("two")
    until(lambda: {"after-%d" % n for n in range(10)} <= set(notes()), "the worker does not come back")
    until(lambda: notes().count("held-two") >= 2, "the task that was held is not redelivered")
    assert add.delay(4, 5).get(timeout=PATIENCE) == 9
    until(lambda: waiting() == 0, "tasks stay in the queue")
    ok("reconnect")


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
worker = start("worker", "--loglevel=WARNING", "--concurrency=1", "--pool=prefork", "--hostname", "w%d@localhost" % os.getpid())
try:
    act_on_a_quorum_queue() if QUORUM else act()
finally:
    stop(worker)
