"""What the programs in this folder share: clients of the unmodified SDK against the nodes of a cluster, and small checks.

Arguments of each program: the HTTP endpoints of the nodes, in order, then what it says itself.
"""
import sys
import time

from mq_http_sdk.mq_client import MQClient
from mq_http_sdk.mq_exception import MQClientNetworkException, MQServerException
from mq_http_sdk.mq_producer import TopicMessage

KEY = SECRET = "guest"


def client(endpoint, key=KEY, secret=SECRET):
    one = MQClient(endpoint, key, secret)
    one.set_connection_timeout(40)
    return one


def producer(endpoint, topic, instance=""):
    return client(endpoint).get_producer(instance, topic)


def consumer(endpoint, topic, group, tag="", instance=""):
    return client(endpoint).get_consumer(instance, topic, group, tag)


def message(body, tag="", key="", **properties):
    one = TopicMessage(body, tag)
    for name, value in properties.items():
        one.put_property(name, value)
    if key:
        one.set_sharding_key(key)
    return one


def fetch(consumer, most=16, wait=1, orderly=False):
    """What one request gets; nothing is an empty list."""
    try:
        return (consumer.consume_message_orderly if orderly else consumer.consume_message)(most, wait)
    except MQServerException as error:
        if error.type == "MessageNotExist":
            return []
        raise


def fetch_all(consumer, count, orderly=False, ack=True, patience=20):
    """Exactly so many messages, then none."""
    got, until = [], time.time() + patience
    while len(got) < count and time.time() < until:
        batch = fetch(consumer, orderly=orderly)
        if ack and batch:
            consumer.ack_message([m.receipt_handle for m in batch])
        got += batch
    check(len(got) == count, "%d messages instead of %d: %r" % (len(got), count, [m.message_body for m in got]))
    return got


def check(holds, text):
    if not holds:
        raise AssertionError(text)


def equal(found, wanted, what):
    check(found == wanted, "%s: %r instead of %r" % (what, found, wanted))


def refused(kind, action, what):
    try:
        action()
    except MQServerException as error:
        equal(error.type, kind, what)
        return error
    raise AssertionError("%s was not refused" % what)


def run(scenes):
    for scene in scenes:
        began = time.time()
        scene()
        print("%s: %.1f s" % (scene.__name__, time.time() - began))
        sys.stdout.flush()
