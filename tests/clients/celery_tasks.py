"""The tasks that Celery's test runs: the application of its worker, of its beat and of its client."""
import os
import time

from celery import Celery
from celery.exceptions import Reject
from kombu import Exchange, Queue

NODES, QUEUE, NOTES = (os.environ[name] for name in ("WARREN_TEST_NODES", "WARREN_TEST_QUEUE", "WARREN_TEST_NOTES"))
KIND = os.environ.get("WARREN_TEST_QUEUE_TYPE", "classic")
PRIORITIES = 10
# A quorum queue makes Celery leave ETA tasks to the broker: in a ladder of queues with times to live and dead letters.
QUEUES = {
    "classic": Queue(QUEUE, routing_key=QUEUE, durable=True, queue_arguments={"x-max-priority": PRIORITIES}),
    "quorum": Queue(QUEUE, Exchange(QUEUE, "topic"), routing_key=QUEUE, durable=True, queue_arguments={"x-queue-type": "quorum"}),
}

app = Celery("celery_tasks", broker=NODES.split(), backend="rpc://")
app.conf.update(
    task_queues=[QUEUES[KIND]],
    task_default_queue=QUEUE,
    task_default_queue_type=KIND,
    task_default_exchange=QUEUES[KIND].exchange.name,
    task_default_exchange_type=QUEUES[KIND].exchange.type,
    task_default_routing_key=QUEUE,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
    broker_heartbeat=10,
    broker_connection_max_retries=None,
    beat_schedule={"tick": {"task": "celery_tasks.note", "schedule": 0.5, "args": ["tick"], "options": {"priority": PRIORITIES}}},
)


def notes():
    with open(NOTES) as file:
        return file.read().split()


@app.task
def add(one, two):
    return one + two


@app.task
def note(text):
    with open(NOTES, "a") as file:
        file.write(text + "\n")


@app.task
def late(eta):
    """How much later than asked this runs."""
    return time.time() - eta


@app.task
def hold(name):
    """Runs until somebody makes a file of that name beside the notes."""
    note("holding-" + name)
    while not os.path.exists(NOTES + name):
        time.sleep(0.02)
    note("held-" + name)


@app.task(bind=True)
def second_time(self):
    """Given back the first time."""
    if not self.request.delivery_info["redelivered"]:
        raise Reject("again", requeue=True)
    return "redelivered"
