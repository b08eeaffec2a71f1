"""Streams through AMQP 0-9-1 with pika: what RabbitMQ's documentation of streams shows, across two nodes.

    streams.py HOST:PORT HOST:PORT     publishers use the first node, consumers the second

Prints a line for each and exits 1 if one failed.
"""
import datetime
import sys
import time
import traceback
import uuid

import pika
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker

SENDER, RECEIVER = sys.argv[1], sys.argv[2]
RUN = uuid.uuid4().hex[:8]
PATIENCE = 60


def connect(address):
    host, port = address.rsplit(":", 1)
    return pika.BlockingConnection(
        pika.ConnectionParameters(host, int(port), blocked_connection_timeout=PATIENCE, socket_timeout=PATIENCE)
    )


class Scene:
    """A connection to each node, and streams that are gone at the end."""

    def __init__(self):
        self.sending, self.receiving = connect(SENDER), connect(RECEIVER)
        self.out = self.sending.channel()
        self.out.confirm_delivery()
        self.queues, self.exchanges = [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        cleaner = connect(SENDER)
        channel = cleaner.channel()
        for queue in self.queues:
            channel.queue_delete(queue)
        for exchange in self.exchanges:
            channel.exchange_delete(exchange)
        for connection in (cleaner, self.sending, self.receiving):
            if connection.is_open:
                connection.close()

    def name(self, what):
        return "%s-%d-%s" % (what, len(self.queues) + len(self.exchanges), RUN)

    def queue(self, **arguments):
        queue = self.name("queue")
        self.out.queue_declare(queue, durable=True, arguments=arguments)
        self.queues.append(queue)
        return queue

    def stream(self, **arguments):
        return self.queue(**{"x-queue-type": "stream", **{key.replace("_", "-"): value for key, value in arguments.items()}})

    def put(self, stream, *bodies, **properties):
        """Confirmed one by one: each is a chunk of its own."""
        for body in bodies:
            self.out.basic_publish("", stream, body, pika.BasicProperties(**properties), mandatory=True)

    def read(self, stream, count, offset="first", prefetch=10, **more):
        """Each with its offset, acknowledged."""
        channel = self.receiving.channel()
        channel.basic_qos(prefetch_count=prefetch)
        arguments = {"x-stream-offset": offset, **{key.replace("_", "-"): value for key, value in more.items()}}
        if offset is None:
            del arguments["x-stream-offset"]
        got = []
        if count:
            for method, properties, body in channel.consume(stream, arguments=arguments, inactivity_timeout=PATIENCE):
                assert method is not None, "%d of %d messages of %s from %r" % (len(got), count, stream, offset)
                assert not method.redelivered
                got.append((properties.headers["x-stream-offset"], body, method, properties))
                channel.basic_ack(method.delivery_tag)
                if len(got) == count:
                    break
        channel.close()
        return got


def pairs(messages):
    return [(offset, body) for offset, body, _, _ in messages]


def numbered(first, last):
    return [(n, b"%d" % n) for n in range(first, last)]


def refused(address, action, *words):
    """The action closes its channel, or the connection, with these words."""
    connection = connect(address)
    try:
        action(connection.channel())
    except (ChannelClosedByBroker, ConnectionClosedByBroker) as closed:
        text = "%d %s" % (closed.reply_code, closed.reply_text)
        for word in words:
            assert word in text, text
        return
    finally:
        if connection.is_open:
            connection.close()
    raise AssertionError("%s: not refused" % (words,))


def every_offset_is_found():
    with Scene() as scene:
        stream = scene.stream()
        before = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=1)
        scene.put(stream, *[b"%d" % n for n in range(30)])
        assert pairs(scene.read(stream, 30)) == numbered(0, 30)
        assert pairs(scene.read(stream, 13, offset=17)) == numbered(17, 30)
        assert pairs(scene.read(stream, 1, offset="last")) == numbered(29, 30)
        assert pairs(scene.read(stream, 30, offset="1h")) == numbered(0, 30)
        assert pairs(scene.read(stream, 30, offset=before)) == numbered(0, 30)
        after = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
        for offset in ["next", None, 31, after]:
            channel = scene.receiving.channel()
            channel.basic_qos(prefetch_count=10)
            got = []
            arguments = {} if offset is None else {"x-stream-offset": offset}
            channel.basic_consume(stream, lambda _c, _m, properties, body: got.append((properties.headers["x-stream-offset"], body)), arguments=arguments)
            count = scene.out.queue_declare(stream, passive=True).method.message_count
            scene.put(stream, b"%d" % count, b"%d" % (count + 1))
            wanted = numbered(31 if offset == 31 else count, count + 2)
            until = time.monotonic() + PATIENCE
            while len(got) < len(wanted) and time.monotonic() < until:
                scene.receiving.process_data_events(time_limit=0.1)
            assert got == wanted, (offset, got, wanted)
            channel.close()


def properties_and_headers_come_back_whole():
    with Scene() as scene:
        stream = scene.stream()
        headers = {
            "text": "text",
            "number": 7,
            "large": 1 << 40,
            "yes": True,
            "nothing": None,
            "table": {"in": {"deep": [1, "two", False]}},
            "list": [{"a": 1}, 2],
            "bytes": b"\xff\x00",
            "x-mine": "kept",
            "x-death": [{"queue": "q", "count": 2}],
        }
        properties = dict(
            content_type="text/plain",
            content_encoding="utf-8",
            headers=headers,
            delivery_mode=2,
            priority=3,
            correlation_id="c",
            reply_to="answers/here",
            expiration="60000",
            message_id="urn:uuid:00010203-0405-0607-0809-0a0b0c0d0e0f",
            timestamp=1_700_000_000,
            type="kind",
            user_id="guest",
            app_id="app",
            cluster_id="cluster",
        )
        scene.put(stream, b"whole", **properties)
        (offset, body, method, got), = scene.read(stream, 1)
        assert (offset, body, method.exchange, method.routing_key) == (0, b"whole", "", stream)
        for key, value in properties.items():
            if key != "headers":
                assert getattr(got, key) == value, (key, getattr(got, key), value)
        assert got.headers.pop("x-stream-offset") == 0
        assert got.headers == headers, (got.headers, headers)
        # Without anything, and with what fits.
        scene.put(stream, b"plain")
        scene.put(stream, b"fits", headers={"a": "b", "x-c": 1, "n": -5})
        plain, fits = scene.read(stream, 2, offset=1)
        assert vars(plain[3]) == vars(pika.BasicProperties(headers={"x-stream-offset": 1})), plain
        assert fits[3].headers == {"a": "b", "x-c": 1, "n": -5, "x-stream-offset": 2}, fits
        large = bytes(range(256)) * 8192
        scene.put(stream, large)
        assert scene.read(stream, 1, offset=3)[0][1] == large


def credit_is_what_is_settled():
    with Scene() as scene:
        stream = scene.stream()
        scene.put(stream, *[b"%d" % n for n in range(20)])
        channel = scene.receiving.channel()
        channel.basic_qos(prefetch_count=5)
        got = []
        tag = channel.basic_consume(stream, lambda *all: got.append(all), arguments={"x-stream-offset": "first"})

        def wait(count):
            until = time.monotonic() + PATIENCE
            while len(got) < count and time.monotonic() < until:
                scene.receiving.process_data_events(time_limit=0.1)
            scene.receiving.process_data_events(time_limit=0.3)
            assert len(got) == count, (len(got), count)

        wait(5)
        channel.basic_ack(got[3][1].delivery_tag, multiple=True)
        wait(9)
        channel.basic_nack(got[4][1].delivery_tag, requeue=True)
        channel.basic_reject(got[5][1].delivery_tag, requeue=False)
        wait(11)
        channel.basic_cancel(tag)
        assert [body for _, _, _, body in got] == [b"%d" % n for n in range(11)]
        # Reading takes nothing away, and what a consumer leaves unsettled is nobody else's concern.
        assert pairs(scene.read(stream, 20)) == numbered(0, 20)


def exchanges_route_to_queues_and_streams_at_once():
    with Scene() as scene:
        one, two, queue = scene.stream(), scene.stream(), scene.queue()
        exchange = scene.name("exchange")
        scene.out.exchange_declare(exchange, "topic", durable=True)
        scene.exchanges.append(exchange)
        for target in (one, two, queue):
            scene.out.queue_bind(target, exchange, "a.*")
        for n in range(10):
            scene.out.basic_publish(exchange, "a.%d" % n, b"%d" % n, mandatory=True)
        for stream in (one, two):
            got = scene.read(stream, 10)
            assert pairs(got) == numbered(0, 10)
            assert [(m.exchange, m.routing_key) for _, _, m, _ in got] == [(exchange, "a.%d" % n) for n in range(10)]
        assert scene.out.queue_declare(queue, passive=True).method.message_count == 10
        scene.out.queue_unbind(one, exchange, "a.*")
        scene.out.queue_unbind(two, exchange, "a.*")
        scene.out.basic_publish(exchange, "a.x", b"queue")
        assert scene.out.queue_declare(one, passive=True).method.message_count == 10


def transactions_bring_all_to_streams_and_queues():
    with Scene() as scene:
        streams, queue = [scene.stream() for _ in range(4)], scene.queue()
        channel = scene.sending.channel()
        channel.tx_select()
        for n in range(3):
            for target in [*streams, queue]:
                channel.basic_publish("", target, b"%d" % n)
        channel.tx_rollback()
        for n in range(3):
            for target in [*streams, queue]:
                channel.basic_publish("", target, b"%d" % n)
        channel.tx_commit()
        for stream in streams:
            assert pairs(scene.read(stream, 3)) == numbered(0, 3)
        assert scene.out.queue_declare(queue, passive=True).method.message_count == 3
        # What comes from a stream is credit when the transaction says so.
        channel = scene.receiving.channel()
        channel.tx_select()
        channel.basic_qos(prefetch_count=1)
        got = []
        channel.basic_consume(streams[0], lambda *all: got.append(all), arguments={"x-stream-offset": "first"})
        until = time.monotonic() + PATIENCE
        while len(got) < 3 and time.monotonic() < until:
            scene.receiving.process_data_events(time_limit=0.1)
            if got:
                channel.basic_ack(got[-1][1].delivery_tag)
                channel.tx_commit()
        assert [body for _, _, _, body in got] == [b"0", b"1", b"2"], got


def letters_and_delayed_messages_come_to_streams():
    with Scene() as scene:
        streams = [scene.stream() for _ in range(4)]
        exchange = scene.name("exchange")
        scene.out.exchange_declare(exchange, "fanout", durable=True)
        scene.exchanges.append(exchange)
        for stream in streams:
            scene.out.queue_bind(stream, exchange)
        source = scene.queue(**{"x-dead-letter-exchange": exchange, "x-message-ttl": 0})
        delayed = scene.name("delayed")
        scene.out.exchange_declare(delayed, "x-delayed-message", durable=True, arguments={"x-delayed-type": "direct"})
        scene.exchanges.append(delayed)
        scene.out.queue_bind(streams[0], delayed, "later")
        for n in range(5):
            scene.out.basic_publish("", source, b"%d" % n)
        for stream in streams:
            got = scene.read(stream, 5)
            assert pairs(got) == numbered(0, 5)
            deaths = got[0][3].headers["x-death"]
            assert (deaths[0]["queue"], deaths[0]["reason"]) == (source, "expired"), deaths
        scene.out.basic_publish(delayed, "later", b"5", pika.BasicProperties(headers={"x-delay": 100}))
        assert pairs(scene.read(streams[0], 6)) == numbered(0, 6)


def filters_pass_over_chunks():
    with Scene() as scene:
        stream = scene.stream(x_stream_filter_size_bytes=32)
        for n in range(30):
            value = ["emea", "asia", None][n % 3]
            scene.put(stream, b"%d" % n, headers={"x-stream-filter-value": value} if value else None)
        assert [n for n, _ in pairs(scene.read(stream, 10, x_stream_filter="asia"))] == list(range(1, 30, 3))
        wanted = [n for n in range(30) if n % 3 != 1]
        got = scene.read(stream, 20, x_stream_filter=["emea"], x_stream_match_unfiltered=True)
        assert [n for n, _ in pairs(got)] == wanted
        assert len(scene.read(stream, 30)) == 30


def what_rabbitmq_refuses_is_refused():
    with Scene() as scene:
        stream, queue = scene.stream(), scene.queue()
        scene.put(stream, b"0")
        named = "queue '%s' in vhost '/'" % stream
        kind = {"x-queue-type": "stream"}

        def declare(name, **how):
            arguments = {**kind, **how.pop("arguments", {})}
            return lambda channel: channel.queue_declare(name, arguments=arguments, **{"durable": True, **how})

        def consume(name, **how):
            def act(channel):
                channel.basic_qos(prefetch_count=how.pop("prefetch", 5))
                channel.basic_consume(name, lambda *_: None, **how)
                channel.connection.process_data_events(time_limit=PATIENCE)

            return act

        refused(SENDER, declare("n", durable=False), "406", "invalid property 'non-durable' for queue 'n' in vhost '/'")
        refused(SENDER, declare("n", exclusive=True), "406", "invalid property 'exclusive-owner' for queue 'n'")
        refused(SENDER, declare("n", auto_delete=True), "406", "invalid property 'auto-delete' for queue 'n'")
        refused(SENDER, declare("n", arguments={"x-max-length": 5}), "406", "invalid arg 'x-max-length'", "of queue type rabbit_stream_queue")
        refused(SENDER, declare("n", arguments={"x-max-age": "1d"}), "406", "invalid_max_age")
        refused(SENDER, declare(queue), "406", "inequivalent arg 'x-queue-type'")
        refused(SENDER, declare(stream, arguments={"x-max-age": "1D"}), "406", "inequivalent arg 'x-max-age' for " + named)
        refused(RECEIVER, consume(stream, prefetch=0), "406", "consumer prefetch count is not set for stream " + named)
        refused(RECEIVER, consume(stream, auto_ack=True), "540", "automatic acknowledgement not supported by stream " + named)
        refused(RECEIVER, consume(stream, arguments={"x-stream-offset": "soon"}), "406", "invalid arg 'x-stream-offset' for " + named)
        refused(RECEIVER, consume(stream, arguments={"x-priority": 1}), "406", "invalid arg 'x-priority'", "rabbit_stream_queue")
        refused(RECEIVER, consume(queue, arguments={"x-stream-offset": "first"}), "406", "of queue type rabbit_classic_queue")
        refused(RECEIVER, lambda channel: channel.basic_get(stream), "540", "basic.get not supported by stream queues " + named)
        refused(RECEIVER, lambda channel: channel.queue_purge(stream), "540", "queue.purge not supported by stream queues " + named)

        def globally(channel):
            channel.basic_qos(prefetch_count=5)
            channel.basic_qos(prefetch_count=5, global_qos=True)
            channel.basic_consume(stream, lambda *_: None)
            channel.connection.process_data_events(time_limit=PATIENCE)

        refused(RECEIVER, globally, "540", "does not support global qos")
        scene.out.queue_declare(stream, durable=True, arguments=kind)
        assert pairs(scene.read(stream, 1)) == numbered(0, 1)


def deleting_a_stream_ends_its_consumers():
    with Scene() as scene:
        stream = scene.stream()
        scene.put(stream, b"0")
        channel = scene.receiving.channel()
        channel.basic_qos(prefetch_count=5)
        got, cancelled = [], []
        channel.add_on_cancel_callback(cancelled.append)
        channel.basic_consume(stream, lambda *all: got.append(all), arguments={"x-stream-offset": "first"})
        until = time.monotonic() + PATIENCE
        while not got and time.monotonic() < until:
            scene.receiving.process_data_events(time_limit=0.1)
        scene.out.queue_delete(stream, if_empty=True, if_unused=True)
        while not cancelled and time.monotonic() < until:
            scene.receiving.process_data_events(time_limit=0.1)
        assert len(cancelled) == 1, cancelled
        # Another one of its name begins anew.
        scene.out.queue_declare(stream, durable=True, arguments={"x-queue-type": "stream"})
        scene.put(stream, b"0", b"1")
        assert pairs(scene.read(stream, 2)) == numbered(0, 2)


SCENES = [
    every_offset_is_found,
    properties_and_headers_come_back_whole,
    credit_is_what_is_settled,
    exchanges_route_to_queues_and_streams_at_once,
    transactions_bring_all_to_streams_and_queues,
    letters_and_delayed_messages_come_to_streams,
    filters_pass_over_chunks,
    what_rabbitmq_refuses_is_refused,
    deleting_a_stream_ends_its_consumers,
]

failed = 0
for scene in SCENES:
    try:
        scene()
        print("ok", scene.__name__)
    except Exception:  # each is told
        traceback.print_exc()
        print("FAILED", scene.__name__)
        failed += 1
sys.exit(1 if failed else 0)
