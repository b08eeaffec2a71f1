"""kombu: a connection with alternates, a producer that retries, a ConsumerMixin that finds another node."""
import threading

from kombu import Connection, Consumer, Producer, Queue
from kombu.mixins import ConsumerMixin

from stage import *

RETRIES = {"interval_start": 0.05, "interval_step": 0.1, "interval_max": 0.5, "max_retries": 60}
queue = Queue(QUEUE, routing_key=QUEUE, durable=True)
connection = Connection(
    [url(FIRST), url(SECOND)], failover_strategy="round-robin", transport_options={"confirm_publish": True}
)
returned = []


def publish(producer, body, key=QUEUE):
    producer.publish(
        body, routing_key=key, mandatory=True, content_type="application/data", content_encoding="binary", delivery_mode=2,
        retry=True, retry_policy=RETRIES,
    )


class Worker(ConsumerMixin):
    """Takes everything; acknowledges all but what it holds until its node is killed."""

    def __init__(self):
        self.connection, self.deliveries, self.holding = connection.clone(), [], True

    def get_consumers(self, consumer, _channel):
        return [consumer([queue], on_message=self.take, prefetch_count=PREFETCH)]

    def take(self, message):
        self.deliveries.append((bytes(message.body), message.delivery_info["redelivered"]))
        if not self.holding:
            message.ack()
            self.should_stop = is_all(self.deliveries)


producer = Producer(connection.channel(), on_return=lambda error, *_: returned.append(error.reply_code))
for body in BODIES:
    publish(producer, body)
assert returned == []
ok("confirm")
publish(producer, b"lost", "nobody-" + QUEUE)
assert returned == [312], returned
ok("return")

deliveries, messages = [], []


def take(message):
    deliveries.append((bytes(message.body), message.delivery_info["redelivered"]))
    messages.append(message)


with Consumer(connection.channel(), [queue], on_message=take, prefetch_count=PREFETCH):

    def await_deliveries(number):
        while len(deliveries) < number:
            connection.drain_events(timeout=PATIENCE)

    await_deliveries(PREFETCH)
    judge_prefetch([body for body, _ in deliveries], queue(producer.channel).queue_declare(passive=True).message_count)
    ok("prefetch")
    messages[0].requeue()
    for done in range(1, len(BODIES) + 1):
        await_deliveries(min(PREFETCH + done, len(BODIES) + 1))
        messages[done].ack()
    judge_requeue(deliveries)
    ok("requeue")

worker = Worker()
thread = threading.Thread(target=worker.run, daemon=True)
thread.start()
publish(producer, HELD)
until(lambda: worker.deliveries, "nothing is delivered")
assert worker.deliveries == [(HELD, False)], worker.deliveries
worker.deliveries, worker.holding = [], False
kill()
for body in AFTER:
    publish(producer, body)
thread.join(PATIENCE)
assert not thread.is_alive(), worker.deliveries
judge_reconnect(worker.deliveries)
connection.release()
ok("reconnect")
