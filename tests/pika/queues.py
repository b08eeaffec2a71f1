"""Queue arguments with pika: declared and filled through one node, read through another. Durable (replicated) and exclusive (in-memory)
queues alike.

    queues.py HOST:PORT HOST:PORT     the first sends, the second receives
"""

import sys
import time
import uuid

import pika
from pika.exceptions import ChannelClosedByBroker, NackError

WAIT = 15
DURABLE = {"durable": True}
EXCLUSIVE = {"exclusive": True}


def connect(address):
    host, port = address.rsplit(":", 1)
    return pika.BlockingConnection(pika.ConnectionParameters(host, int(port), blocked_connection_timeout=WAIT, socket_timeout=WAIT))


def name(what):
    return f"queues-{what}-{uuid.uuid4().hex[:8]}"


def declare(channel, what, kind, **arguments):
    queue = name(what)
    channel.queue_declare(queue, arguments={key.replace("_", "-"): value for key, value in arguments.items()}, **kind)
    return queue


def put(channel, queue, body, **properties):
    channel.basic_publish("", queue, body, pika.BasicProperties(**properties), mandatory=True)


def get(channel, queue, within=WAIT):
    """The next message, once it is there."""
    until = time.time() + within
    while time.time() < until:
        method, properties, body = channel.basic_get(queue)
        if method:
            return method, properties, body
        time.sleep(0.02)
    raise AssertionError(f"no message in {queue}")


def count(channel, queue):
    return channel.queue_declare(queue, passive=True).method.message_count


def until_empty(channel, queue):
    until = time.time() + WAIT
    while count(channel, queue):
        assert time.time() < until, f"{queue} is never empty"
        time.sleep(0.02)


def limits(sender, reader, kind):
    queue = declare(sender, "limit", kind, x_max_length=3)
    for n in range(10):
        put(sender, queue, str(n))
    assert count(sender, queue) == 3
    assert [get(reader, queue)[2] for _ in range(3)] == [b"7", b"8", b"9"]
    queue = declare(sender, "bytes", kind, x_max_length_bytes=10)
    for n in range(5):
        put(sender, queue, str(n) * 4)
    assert count(sender, queue) == 2
    queue = declare(sender, "refuse", kind, x_max_length=1, x_overflow="reject-publish")
    put(sender, queue, "taken")
    try:
        put(sender, queue, "refused")
        raise AssertionError("a full queue took a message")
    except NackError:
        pass
    assert count(sender, queue) == 1


def times(sender, reader, kind):
    queue = declare(sender, "ttl", kind, x_message_ttl=100)
    put(sender, queue, "short")
    until_empty(reader, queue)
    queue = declare(sender, "expiration", kind)
    put(sender, queue, "short", expiration="50")
    put(sender, queue, "long", expiration="600000")
    while count(reader, queue) > 1:
        time.sleep(0.02)
    assert get(reader, queue)[2] == b"long"
    queue = declare(sender, "expires", kind, x_expires=300)
    until = time.time() + WAIT
    while time.time() < until:
        time.sleep(0.5)
        probe = sender.connection.channel()
        try:
            probe.queue_declare(queue, passive=True)
        except ChannelClosedByBroker as closed:
            assert closed.reply_code == 404
            return
    raise AssertionError("a queue that nobody uses does not expire")


def deaths(sender, reader, kind):
    exchange = name("dlx")
    sender.exchange_declare(exchange, "direct")
    graves = [declare(sender, f"grave{n}", kind) for n in range(3)]
    for grave in graves:
        sender.queue_bind(grave, exchange, "k")
    queue = declare(sender, "dying", kind, x_dead_letter_exchange=exchange, x_dead_letter_routing_key="k", x_max_length=2)
    for body in ("dropped", "rejected", "stays"):
        put(sender, queue, body, headers={"mine": 1})
    for grave in graves:
        method, properties, body = get(reader, grave)
        assert (body, method.exchange, method.routing_key) == (b"dropped", exchange, "k")
        death = properties.headers["x-death"][0]
        assert (death["reason"], death["queue"], death["count"]) == ("maxlen", queue, 1)
        assert (death["exchange"], death["routing-keys"]) == ("", [queue])
        assert properties.headers["x-first-death-reason"] == "maxlen" and properties.headers["mine"] == 1
    method, _, body = get(reader, queue)
    assert body == b"rejected"
    reader.basic_reject(method.delivery_tag, requeue=False)
    for grave in graves:
        _, properties, body = get(reader, grave)
        assert (body, properties.headers["x-death"][0]["reason"]) == (b"rejected", "rejected")


def retries(sender, reader, kind):
    """The classic retry loop: work -> wait (expires) -> work, counted, until somebody stops it."""
    work, wait = name("work"), name("wait")
    to = lambda queue, **more: {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue, **more}
    sender.queue_declare(work, arguments=to(wait), **kind)
    sender.queue_declare(wait, arguments=to(work, **{"x-message-ttl": 50}), **kind)
    put(sender, work, "again")
    for attempt in range(4):
        method, properties, _ = get(reader, work)
        found = {(d["queue"], d["reason"]): d["count"] for d in (properties.headers or {}).get("x-death", [])}
        wanted = {(work, "rejected"): attempt, (wait, "expired"): attempt} if attempt else {}
        assert found == wanted, (found, wanted)
        reader.basic_reject(method.delivery_tag, requeue=False)


def delivery_limit(sender, reader, kind):
    """Every way of giving a message back counts, as with RabbitMQ 4.0 to 4.2; one more than the limit is the last."""
    ways = (
        lambda channel, tag: channel.basic_reject(tag, requeue=True),
        lambda channel, tag: channel.basic_nack(tag, requeue=True),
        lambda channel, _: channel.basic_recover(requeue=True),
        lambda channel, _: channel.close(),
    )
    queue = declare(sender, "poison", kind, x_delivery_limit=len(ways) - 1)
    put(sender, queue, "poison")
    for attempt, give_back in enumerate(ways):
        channel = reader.connection.channel()
        method, properties, _ = get(channel, queue)
        assert (properties.headers or {}).get("x-delivery-count", 0) == attempt, (attempt, properties.headers)
        give_back(channel, method.delivery_tag)
        if attempt < len(ways) - 1:
            channel.close()
    until_empty(reader, queue)


def failures(sender, reader, kind):
    """What fails too often is a dead letter that says so, and goes on counting when it comes again. Three queues have three leaders."""
    for n in range(3):
        queue, grave = name(f"failing{n}"), name(f"failed{n}")
        to = lambda queue, **more: {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue, **more}
        sender.queue_declare(queue, arguments=to(grave, **{"x-delivery-limit": 1}), **kind)
        sender.queue_declare(grave, arguments=to(queue), **kind)
        put(sender, queue, "fails", headers={"mine": 1})
        for count in (1, 2):
            for _ in range(2):
                method, _, _ = get(reader, queue)
                reader.basic_nack(method.delivery_tag, requeue=True)
            method, properties, body = get(reader, grave)
            headers, death = properties.headers, properties.headers["x-death"][0]
            assert (body, method.exchange, method.routing_key, headers["mine"]) == (b"fails", "", grave, 1)
            assert (death["reason"], death["queue"], death["count"]) == ("delivery_limit", queue, count), headers
            assert (death["exchange"], death["routing-keys"]) == ("", [queue]), headers
            assert len(headers["x-death"]) == count, headers
            for which in ("first", "last"):
                said = [headers[f"x-{which}-death-{what}"] for what in ("reason", "queue", "exchange")]
                assert said == ["delivery_limit", queue, ""], headers
            assert "x-delivery-count" not in headers, headers
            reader.basic_reject(method.delivery_tag, requeue=False)
        until_empty(reader, grave)


def refusals(sender, reader, kind):
    """The publisher hears that its message was refused, and the message is a dead letter."""
    for n in range(3):
        grave = declare(sender, f"refused{n}", kind)
        to = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": grave}
        queue = declare(sender, f"full{n}", kind, x_max_length=1, x_overflow="reject-publish-dlx", **to)
        put(sender, queue, "fits")
        try:
            put(sender, queue, "too many", headers={"mine": 1})
            raise AssertionError("a full queue took a message")
        except NackError:
            pass
        _, properties, body = get(reader, grave)
        death = properties.headers["x-death"][0]
        assert (body, death["reason"], death["queue"], death["count"]) == (b"too many", "maxlen", queue, 1), properties.headers
        assert properties.headers["x-first-death-reason"] == "maxlen" and properties.headers["mine"] == 1, properties.headers
        assert get(reader, queue)[2] == b"fits"


def priorities(sender, reader, kind):
    queue = declare(sender, "priority", kind, x_max_priority=5)
    for priority in (0, 5, 3, 9, None):
        put(sender, queue, str(priority), priority=priority)
    assert [get(reader, queue)[2] for _ in range(5)] == [b"5", b"9", b"3", b"0", b"None"]


def consumers(sender, reader, kind):
    queue = declare(sender, "single", kind, x_single_active_consumer=True)
    got = []
    on = lambda who: lambda channel, method, *_: (got.append(who), channel.basic_ack(method.delivery_tag))
    first = reader.basic_consume(queue, on("first"))
    reader.basic_consume(queue, on("second"), arguments={"x-priority": 0})
    for n in range(4):
        put(sender, queue, str(n))
    while len(got) < 4:
        reader.connection.process_data_events(0.1)
    reader.basic_cancel(first)
    put(sender, queue, "last")
    while len(got) < 5:
        reader.connection.process_data_events(0.1)
    assert got == ["first"] * 4 + ["second"], got


def timeout(address):
    connection = connect(address)
    channel = connection.channel()
    queue = declare(channel, "timeout", EXCLUSIVE, x_consumer_timeout=200)
    reasons = []
    channel._impl.add_on_close_callback(lambda _, reason: reasons.append(reason))
    channel.basic_consume(queue, lambda *_: None)
    put(channel, queue, "held")
    until = time.time() + WAIT
    while not reasons:
        assert time.time() < until, "nobody minds a message held for too long"
        connection.process_data_events(0.1)
    assert reasons[0].reply_code == 406 and "delivery acknowledgement on channel 1 timed out" in reasons[0].reply_text, reasons
    connection.close()


def main(one, two):
    for kind, other in ((DURABLE, two), (EXCLUSIVE, one)):
        sending = connect(one)
        reading = sending if other == one else connect(other)
        for part in (limits, times, deaths, retries, delivery_limit, failures, refusals, priorities, consumers):
            sender, reader = sending.channel(), reading.channel()
            sender.confirm_delivery()
            part(sender, reader, kind)
            sender.close()
            reader.close()
            print(f"{part.__name__} {kind}: fine")
        sending.close()
    timeout(one)


main(*sys.argv[1:3])
