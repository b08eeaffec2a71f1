"""pika's BlockingConnection; it reconnects by hand, to the next node that takes it."""
import itertools
import time

import pika
from pika.exceptions import AMQPError, UnroutableError

from stage import *


def connect():
    for node in itertools.cycle((FIRST, SECOND)):
        try:
            return pika.BlockingConnection(pika.URLParameters(url(node) + "?blocked_connection_timeout=30&socket_timeout=30"))
        except AMQPError:
            time.sleep(0.05)


class Client:
    def __init__(self):
        self.connection = connect()
        self.out, self.into = self.connection.channel(), self.connection.channel()
        self.out.confirm_delivery()
        self.into.basic_qos(prefetch_count=PREFETCH)
        self.deliveries, self.tags = [], []

    def publish(self, body, key=QUEUE):
        self.out.basic_publish("", key, body, pika.BasicProperties(delivery_mode=2), mandatory=True)

    def consume(self):
        def take(_channel, method, _properties, body):
            self.deliveries.append((body, method.redelivered))
            self.tags.append(method.delivery_tag)

        return self.into.basic_consume(QUEUE, take)

    def await_deliveries(self, number):
        end = time.time() + PATIENCE
        while len(self.deliveries) < number:
            assert time.time() < end, self.deliveries
            self.connection.process_data_events(time_limit=0.1)


client = Client()
for body in BODIES:
    client.publish(body)
ok("confirm")
try:
    client.publish(b"lost", "nobody-" + QUEUE)
    raise AssertionError("not returned")
except UnroutableError as error:
    assert error.messages[0].method.reply_code == 312, error
ok("return")
tag = client.consume()
client.await_deliveries(PREFETCH)
waiting = client.out.queue_declare(QUEUE, passive=True).method.message_count
judge_prefetch([body for body, _ in client.deliveries], waiting)
ok("prefetch")
client.into.basic_nack(client.tags[0], requeue=True)
for done in range(1, len(BODIES) + 1):
    client.await_deliveries(min(PREFETCH + done, len(BODIES) + 1))
    client.into.basic_ack(client.tags[done])
judge_requeue(client.deliveries)
ok("requeue")

client.publish(HELD)
client.await_deliveries(len(BODIES) + 2)
assert client.deliveries[-1] == (HELD, False)
kill()
client, left = None, list(AFTER)
while client is None or left or not is_all(client.deliveries):
    try:
        if client is None:
            client = Client()
            client.into.basic_qos(prefetch_count=0)
            client.consume()
        if left:
            client.publish(left[0])
            left.pop(0)
        else:
            client.await_deliveries(len(AFTER) + 1)
    except AMQPError:
        client = None
judge_reconnect(client.deliveries)
client.into.basic_ack(0, multiple=True)
client.connection.close()
ok("reconnect")
