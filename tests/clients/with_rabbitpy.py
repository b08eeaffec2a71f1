"""rabbitpy; it reconnects by hand, to the next node that takes it."""
import itertools
import time

import rabbitpy
from rabbitpy.exceptions import MessageReturnedException, RabbitpyException

from stage import *

LOST = (RabbitpyException, RuntimeError, OSError)  # RuntimeError: nobody listens


def connect():
    for node in itertools.cycle((FIRST, SECOND)):
        try:
            return rabbitpy.Connection(url(node))
        except LOST:
            time.sleep(0.05)


def publish(channel, body, key=QUEUE):
    message = rabbitpy.Message(channel, body, {"delivery_mode": 2, "content_type": "application/octet-stream"})
    assert message.publish("", key, mandatory=True), "nacked"


def confirming(connection):
    channel = connection.channel()
    channel.enable_publisher_confirms()
    return channel


def taken(arrivals, deliveries):
    message = next(arrivals)
    deliveries.append((bytes(message.body), message.redelivered))
    return message


connection = connect()
out = confirming(connection)
for body in BODIES:
    publish(out, body)
ok("confirm")
try:
    publish(confirming(connection), b"lost", "nobody-" + QUEUE)
    raise AssertionError("not returned")
except MessageReturnedException as error:
    assert 312 in error.args or "312" in str(error), error.args
ok("return")

deliveries = []
arrivals = rabbitpy.Queue(connection.channel(), QUEUE, durable=True).consume(prefetch=PREFETCH)
messages = [taken(arrivals, deliveries) for _ in range(PREFETCH)]
judge_prefetch([body for body, _ in deliveries], len(rabbitpy.Queue(out, QUEUE, durable=True)))
ok("prefetch")
messages.pop(0).nack(requeue=True)
messages.append(taken(arrivals, deliveries))
while messages:
    messages.pop(0).ack()
    if len(deliveries) <= len(BODIES):
        messages.append(taken(arrivals, deliveries))
judge_requeue(deliveries)
ok("requeue")

publish(out, HELD)
assert taken(arrivals, []).body == HELD
kill()
connection, left = None, list(AFTER)
while connection is None:
    try:
        connection = connect()
        out, deliveries = confirming(connection), []
        arrivals = rabbitpy.Queue(connection.channel(), QUEUE, durable=True).consume(prefetch=0)
        while left:
            publish(out, left[0])
            left.pop(0)
        while not is_all(deliveries):
            message = taken(arrivals, deliveries)
    except (*LOST, StopIteration):
        connection = None
judge_reconnect(deliveries)
message.ack(all_previous=True)
len(rabbitpy.Queue(message.channel, QUEUE, durable=True))  # the acknowledgement is heard
arrivals.close()
connection.close()
ok("reconnect")
