"""What RocketMQ's HTTP SDK is promised, every request through another node than the one before where that makes a difference.

semantics.py ENDPOINT ENDPOINT ENDPOINT AMQP-URI STREAM-ADDRESS
Topics: `plain` (1 partition, 2 s invisible, 2 retries; another in the vhost `other`), `ordered` (8 partitions, 2 s), `halves`. A key `reader` whose user may only read,
one `teller` whose user may only write to `halves`.
"""
import asyncio
import hashlib
import sys
import threading
import time

import pika
from rstream import Consumer, ConsumerOffsetSpecification, OffsetType, amqp_decoder

from stage import check, client, consumer, equal, fetch, fetch_all, message, producer, refused, run

NODES, AMQP, STREAM = sys.argv[1:4], sys.argv[4], sys.argv[5]
A, B, C = NODES


def a_message_goes_through_any_node():
    for n, at in enumerate(NODES):
        group = "GID_any_%d" % n
        fetch(consumer(at, "plain", group), wait=0)
        sent = producer(NODES[(n + 1) % 3], "plain").publish_message(message("hello <%d> & 中" % n, "tag 0", a="i"))
        got = fetch(consumer(NODES[(n + 2) % 3], "plain", group), wait=5)
        equal([m.message_body for m in got], ["hello <%d> & 中" % n], "body")
        m = got[0]
        equal((m.message_id, m.message_tag, m.get_property("a"), m.consumed_times), (sent.message_id, "tag 0", "i", 1), "fields")
        equal(m.message_body_md5, hashlib.md5(m.message_body.encode()).hexdigest().upper(), "MD5")
        consumer(at, "plain", group).ack_message([m.receipt_handle])
        error = refused("ReceiptHandleError", lambda: consumer(at, "plain", group).ack_message([m.receipt_handle]), "a used handle")
        equal([e["ReceiptHandle"] for e in error.sub_errors], [m.receipt_handle], "the bad one is named")


def good_handles_are_used_although_others_are_bad():
    group = "GID_partial"
    fetch(consumer(A, "plain", group), wait=0)
    for n in range(3):
        producer(A, "plain").publish_message(message("p%d" % n))
    got = fetch_all(consumer(A, "plain", group), 3, ack=False)
    handles = [got[0].receipt_handle, "no-handle", got[1].receipt_handle]
    error = refused("ReceiptHandleError", lambda: consumer(B, "plain", group).ack_message(handles), "one bad handle")
    equal([e["ReceiptHandle"] for e in error.sub_errors], ["no-handle"], "only it is named")
    refused("SubscriptionNotExist", lambda: consumer(C, "plain", "GID_other").ack_message([got[2].receipt_handle]), "no such group")
    fetch(consumer(A, "plain", "GID_other"), wait=0)
    refused("ReceiptHandleError", lambda: consumer(C, "plain", "GID_other").ack_message([got[2].receipt_handle]), "another group's handle")
    fetch(consumer(A, "plain", group, instance="other"), wait=0)
    elsewhere = consumer(A, "plain", group, instance="other")
    refused("ReceiptHandleError", lambda: elsewhere.ack_message([got[2].receipt_handle]), "a handle of another vhost")
    again = fetch_all(consumer(C, "plain", group), 1)
    equal((again[0].message_body, again[0].consumed_times), ("p2", 2), "what was not acknowledged comes again")
    equal(fetch(consumer(B, "plain", group), wait=3), [], "what was does not")


def after_the_last_retry_it_is_a_dead_letter():
    group = "GID_dead"
    fetch(consumer(A, "plain", group), wait=0)
    sent = producer(B, "plain").publish_message(message("poison", "bad", a="1"))
    times = []
    until = time.time() + 30
    while len(times) < 3 and time.time() < until:
        times += [m.consumed_times for m in fetch(consumer(NODES[len(times)], "plain", group), wait=5)]
    equal(times, [1, 2, 3], "deliveries")
    dead = fetch_all(consumer(C, "%DLQ%" + group, group), 1)
    equal((dead[0].message_id, dead[0].message_body, dead[0].message_tag), (sent.message_id, "poison", "bad"), "the dead letter")
    equal(dict(dead[0].properties), {"a": "1"}, "its properties, and no others")
    equal(fetch(consumer(A, "plain", group), wait=3), [], "its group gets it no more")


def the_first_delivery_was_when_it_was_whichever_node_says_so():
    group = "GID_first"
    fetch(consumer(A, "plain", group), wait=0)
    producer(B, "plain").publish_message(message("first"))
    seen = []
    for n, at in enumerate((A, B, C)):
        [m] = fetch(consumer(at, "plain", group), wait=20)
        equal(m.consumed_times, n + 1, "deliveries")
        seen.append(m.first_consume_time)
        # It waits in its queue for a while when its two seconds are over.
        time.sleep(4)
    # The other nodes go by when it came back first, which takes the broker a moment.
    check(seen[0] <= seen[1] + 100, "earlier than it was: %r" % seen)
    equal(seen[2], seen[1], "nodes that were not there agree")


def a_waiting_request_is_woken_from_another_node():
    group = "GID_wake"
    fetch(consumer(A, "ordered", group), wait=0)
    for orderly in (False, True):
        timer = threading.Timer(1.0, lambda: producer(C, "ordered").publish_message(message("wake", key="k")))
        began = time.time()
        timer.start()
        at = consumer(B, "ordered", group)
        got = fetch(at, wait=20, orderly=orderly)
        took = time.time() - began
        equal([m.message_body for m in got], ["wake"], "what woke it")
        check(0.9 < took < 10, "woken after %.1f s" % took)
        at.ack_message([m.receipt_handle for m in got])


def a_partition_waits_for_its_acknowledgements_through_all_nodes():
    group = "GID_order"
    fetch(consumer(A, "ordered", group), wait=0, orderly=True)
    for n in range(6):
        for key in ("k1", "k2", "k3"):
            producer(NODES[n % 3], "ordered").publish_message(message("%d" % n, key=key))
    seen = {}
    until = time.time() + 40
    while sum(map(len, seen.values())) < 18 and time.time() < until:
        first = fetch(consumer(A, "ordered", group), most=2, orderly=True)
        held = {m.get_sharding_key() for m in first}
        others = [fetch(consumer(at, "ordered", group), most=2, wait=0, orderly=True) for at in (B, C)]
        for batch in [first] + others:
            for m in batch:
                key, n = m.get_sharding_key(), int(m.message_body)
                check(batch is first or key not in held, "%s is out twice" % key)
                equal(n, len(seen.setdefault(key, [])), "order of %s" % key)
                seen[key].append(n)
        for batch in [first] + others:
            if batch:
                consumer(C, "ordered", group).ack_message([m.receipt_handle for m in batch])
    equal({key: len(all) for key, all in seen.items()}, {"k1": 6, "k2": 6, "k3": 6}, "all of them")


def a_delayed_message_comes_in_time():
    group = "GID_delay"
    fetch(consumer(A, "plain", group), wait=0)
    at_ms = int(time.time() * 1000) + 2500
    later = message("later")
    later.set_start_deliver_time(at_ms)
    producer(B, "plain").publish_message(later)
    got = fetch(consumer(C, "plain", group), wait=15)
    check(time.time() * 1000 >= at_ms, "it came early")
    equal([m.message_body for m in got], ["later"], "what came")
    consumer(A, "plain", group).ack_message([got[0].receipt_handle])


def half_messages_ask_for_the_right_to_publish_and_for_no_other():
    def of(at, key, topic):
        return client(at, key, key + "-secret" if key != "guest" else key).get_trans_producer("", topic, "GID_teller")

    half = message("told", "t")
    half.set_trans_check_immunity_time(10)
    # The first that this node is sent at all; the node that the second one comes to asks this one.
    sent = [of(A, "teller", "halves").publish_message(half) for _ in range(2)]
    of(B, "teller", "halves").rollback(sent[0].receipt_handle)
    refused("AccessDenied", lambda: of(A, "teller", "plain").publish_message(half), "another topic")
    refused("AccessDenied", lambda: of(A, "reader", "halves").publish_message(half), "without the right")
    refused("AccessDenied", lambda: of(A, "reader", "halves").rollback(sent[1].receipt_handle), "a handle does not replace the right")
    refused("AccessDenied", lambda: of(A, "reader", "halves").consume_half_message(1, 0), "nor looks anybody without it")
    other = of(A, "guest", "plain").publish_message(half)
    of(C, "guest", "plain").rollback(other.receipt_handle)
    checked, until = [], time.time() + 30
    while not checked and time.time() < until:
        checked = _halves(of(C, "teller", "halves"))
    equal([m.message_id for m in checked], [sent[1].message_id], "who may publish may check")
    of(C, "teller", "halves").rollback(checked[0].receipt_handle)


def a_half_message_is_decided_through_any_node():
    group = "GID_half"
    fetch(consumer(A, "halves", group), wait=0)
    half = message("half", "t")
    half.set_trans_check_immunity_time(10)
    sent = [client(at).get_trans_producer("", "halves", group).publish_message(half) for at in NODES]
    equal(fetch(consumer(B, "halves", group), wait=1), [], "it is not seen")
    client(B).get_trans_producer("", "halves", group).commit(sent[0].receipt_handle)
    client(C).get_trans_producer("", "halves", group).rollback(sent[1].receipt_handle)
    got = fetch_all(consumer(C, "halves", group), 1)
    equal((got[0].message_id, got[0].message_tag), (sent[0].message_id, "t"), "what was committed")
    checked, until = [], time.time() + 30
    while not checked and time.time() < until:
        checked = _halves(client(A).get_trans_producer("", "halves", group))
    equal([(m.message_id, m.consumed_times) for m in checked], [(sent[2].message_id, 1)], "what nobody decided")
    client(B).get_trans_producer("", "halves", group).commit(checked[0].receipt_handle)
    equal([m.message_id for m in fetch_all(consumer(A, "halves", group), 1)], [sent[2].message_id], "now it is")


def _halves(trans):
    class Fetching:
        consume_message = staticmethod(trans.consume_half_message)

    return fetch(Fetching, 16, 3)


def amqp_and_http_see_the_same_messages():
    group = "GID_cross"
    fetch(consumer(A, "plain", group), wait=0)
    connection = pika.BlockingConnection(pika.URLParameters(AMQP))
    channel = connection.channel()
    channel.confirm_delivery()
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, "plain", "orders.#")
    producer(B, "plain").publish_message(message("over http", "orders.new", a="1"))
    producer(B, "plain").publish_message(message("another", "else"))
    method, properties, body = next(channel.consume(queue, inactivity_timeout=10))
    equal((body, method.routing_key, properties.headers["a"]), (b"over http", "orders.new", "1"), "what AMQP sees")
    channel.cancel()
    headers = {"a": "x", "time": "12:30", "n": 5}
    channel.basic_publish("plain", "from.amqp", b"\x00\xff", pika.BasicProperties(headers=headers))
    got = fetch_all(consumer(C, "plain", group), 3)
    equal([m.message_body for m in got], ["over http", "another", "AP8="], "what HTTP sees")
    one = got[2]
    equal((one.message_tag, one.get_property("a"), one.get_property("n")), ("from.amqp", "x", "5"), "tag and properties")
    equal((one.get_property("time"), one.get_property("__BodyEncoding")), ("12%3A30", "base64"), "what cannot be carried")
    connection.close()


def plain(value):
    return bytes(value).decode() if isinstance(value, (bytes, memoryview)) else value


async def _stream(name, count):
    """The first messages of a stream: body, routing key and the header `a`."""
    got = []

    def came(m, _):
        body = m.body if isinstance(m.body, bytes) else b"".join(m.body)
        annotations = {plain(k): plain(v) for k, v in (m.message_annotations or {}).items()}
        properties = {plain(k): plain(v) for k, v in (m.application_properties or {}).items()}
        got.append((body.decode(), annotations.get("x-routing-key"), properties.get("a")))

    host, port = STREAM.rsplit(":", 1)
    reader = Consumer(host, int(port), username="guest", password="guest")
    await reader.start()
    first = ConsumerOffsetSpecification(OffsetType.FIRST, None)
    await reader.subscribe(name, came, decoder=amqp_decoder, offset_specification=first)
    until = time.time() + 30
    while len(got) < count and time.time() < until:
        await asyncio.sleep(0.05)
    await reader.close()
    return got


def a_topic_feeds_groups_queues_and_a_stream_through_different_nodes():
    group, stream = "GID_stream", "a stream of the topic"
    fetch(consumer(A, "plain", group), wait=0)
    connection = pika.BlockingConnection(pika.URLParameters(AMQP))
    channel = connection.channel()
    channel.confirm_delivery()
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_declare(stream, durable=True, arguments={"x-queue-type": "stream"})
    for name in (queue, stream):
        channel.queue_bind(name, "plain", "#")
    producer(A, "plain").publish_message(message("over http", "tag 1", a="1"))
    channel.basic_publish("plain", "tag.2", b"over amqp", pika.BasicProperties(headers={"a": "2"}))
    producer(C, "plain").publish_message(message("over http again", "", a="3"))
    wanted = [("over http", "tag 1", "1"), ("over amqp", "tag.2", "2"), ("over http again", "", "3")]
    found = [(m.message_body, m.message_tag, m.get_property("a")) for m in fetch_all(consumer(C, "plain", group), 3)]
    equal(found, wanted, "what the group gets")
    found = []
    for method, properties, body in channel.consume(queue, inactivity_timeout=10):
        found.append(method and (body.decode(), method.routing_key, properties.headers["a"]))
        if not method or len(found) == 3:
            break
    equal(found, wanted, "what the queue gets")
    channel.cancel()
    equal(asyncio.run(_stream(stream, 3)), wanted, "what the stream has")
    channel.basic_qos(prefetch_count=10)
    found = []
    for method, properties, body in channel.consume(stream, arguments={"x-stream-offset": "first"}, inactivity_timeout=10):
        found.append(method and (body.decode(), method.routing_key, properties.headers["a"]))
        if not method or len(found) == 3:
            break
    equal(found, wanted, "what AMQP reads of the stream")
    connection.close()


def rights_and_names_hold():
    reader = client(A, "reader", "reader-secret")
    fetch(consumer(A, "plain", "GID_reader"), wait=0)
    refused("AccessDenied", lambda: reader.get_producer("", "plain").publish_message(message("x")), "publishing without the right")
    equal(fetch(reader.get_consumer("", "plain", "GID_reader"), wait=0), [], "reading with it")
    refused("AccessDenied", lambda: reader.get_consumer("", "plain", "GID_new").consume_message(1), "making a group without the right")
    refused("TopicNotExist", lambda: producer(A, "plain", "no-such-instance").publish_message(message("x")), "an unknown instance")
    refused("SignatureDoesNotMatch", lambda: client(A, "reader", "wrong").get_producer("", "plain").publish_message(message("x")), "a wrong secret")


run([
    a_message_goes_through_any_node,
    good_handles_are_used_although_others_are_bad,
    after_the_last_retry_it_is_a_dead_letter,
    the_first_delivery_was_when_it_was_whichever_node_says_so,
    a_waiting_request_is_woken_from_another_node,
    a_partition_waits_for_its_acknowledgements_through_all_nodes,
    a_delayed_message_comes_in_time,
    half_messages_ask_for_the_right_to_publish_and_for_no_other,
    a_half_message_is_decided_through_any_node,
    amqp_and_http_see_the_same_messages,
    a_topic_feeds_groups_queues_and_a_stream_through_different_nodes,
    rights_and_names_hold,
])
