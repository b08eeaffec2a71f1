"""What RabbitMQ adds to AMQP 0-9-1, and the methods that the tutorials do not use, through pika: each across two nodes.

    extensions.py HOST:PORT HOST:PORT     publishers use the first node, consumers the second

Prints a line for each and exits 1 if one failed.
"""
import collections
import sys
import time
import traceback
import uuid

import pika
from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker, UnroutableError

SENDER, RECEIVER = sys.argv[1], sys.argv[2]
RUN = uuid.uuid4().hex[:8]
PATIENCE = 30
REPLY_TO = "amq.rabbitmq.reply-to"


def connect(address):
    host, port = address.rsplit(":", 1)
    return pika.BlockingConnection(
        pika.ConnectionParameters(host, int(port), blocked_connection_timeout=PATIENCE, socket_timeout=PATIENCE)
    )


class Scene:
    """A connection to each node, and names that are gone at the end."""

    def __init__(self):
        self.sending, self.receiving = connect(SENDER), connect(RECEIVER)
        self.out, self.into = self.sending.channel(), self.receiving.channel()
        self.queues, self.exchanges, self.count = [], [], 0

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

    def name(self, text):
        self.count += 1
        return "%s-%d-%s" % (text, self.count, RUN)

    def queue(self, **options):
        """Declared through the receivers' node."""
        queue = self.name("queue")
        self.into.queue_declare(queue, durable=True, **options)
        self.queues.append(queue)
        return queue

    def exchange(self, kind, **options):
        """Declared through the senders' node."""
        exchange = self.name(kind)
        self.out.exchange_declare(exchange, kind, durable=True, **options)
        self.exchanges.append(exchange)
        return exchange

    def bound(self, exchange, key="", arguments=None):
        queue = self.queue()
        self.into.queue_bind(queue, exchange, key, arguments)
        return queue

    def drain(self, queue):
        """Bodies that wait now."""
        bodies = []
        while True:
            method, _, body = self.into.basic_get(queue, auto_ack=True)
            if method is None:
                return bodies
            bodies.append(body.decode())


def refused(code, text, action, channel):
    try:
        action()
        channel.queue_declare(REPLY_TO, passive=True)
    except ChannelClosedByBroker as error:
        assert error.reply_code == code and text in error.reply_text, error
        return
    raise AssertionError("not refused with %d %s" % (code, text))


def transactions():
    with Scene() as s:
        one, two = s.queue(), s.queue()
        s.out.tx_select()
        for n in range(20):
            s.out.basic_publish("", one if n % 2 else two, b"%d" % n)
        s.sending.process_data_events(time_limit=0.2)
        assert s.drain(one) == s.drain(two) == [], "seen before the commit"
        s.out.tx_commit()
        assert s.drain(one) == [str(n) for n in range(1, 20, 2)]
        assert s.drain(two) == [str(n) for n in range(0, 20, 2)]
        s.out.basic_publish("", one, b"dropped")
        s.out.tx_rollback()
        s.out.tx_commit()
        assert s.drain(one) == []

        # Acknowledgements: a rollback takes them back, a commit makes them count.
        for n in range(3):
            s.out.basic_publish("", one, b"%d" % n)
        s.out.tx_commit()
        channel = s.receiving.channel()
        channel.tx_select()
        tags = [channel.basic_get(one)[0].delivery_tag for _ in range(3)]
        channel.basic_ack(tags[0])
        channel.tx_rollback()
        channel.basic_ack(tags[1], multiple=True)
        channel.tx_commit()
        channel.basic_ack(tags[2])
        channel.close()
        method, _, body = s.into.basic_get(one)
        assert body == b"2" and method.redelivered, (method, body)
        assert s.into.basic_get(one)[0] is None
        s.into.basic_ack(method.delivery_tag)


def transactions_refuse():
    with Scene() as s:
        channel = s.sending.channel()
        channel.confirm_delivery()
        refused(406, "cannot switch from confirm to tx mode", channel.tx_select, channel)
        channel = s.sending.channel()
        channel.tx_select()
        refused(406, "cannot switch from tx to confirm mode", channel.confirm_delivery, channel)
        channel = s.sending.channel()
        refused(406, "channel is not transactional", channel.tx_commit, channel)
        channel = s.sending.channel()
        channel.tx_select()
        refused(404, "no exchange", lambda: channel.basic_publish("none-" + RUN, "k", b"x"), channel)


def alternate_exchanges():
    with Scene() as s:
        last = s.exchange("fanout")
        first = s.exchange("direct", arguments={"alternate-exchange": last})
        known, other = s.bound(first, "known"), s.bound(last)
        s.out.confirm_delivery()
        s.out.basic_publish(first, "known", b"1", mandatory=True)
        s.out.basic_publish(first, "unknown", b"2", mandatory=True)
        assert (s.drain(known), s.drain(other)) == (["1"], ["2"])
        s.into.queue_unbind(other, last, "")
        try:
            s.out.basic_publish(first, "unknown", b"3", mandatory=True)
            raise AssertionError("not returned")
        except UnroutableError as error:
            assert error.messages[0].method.reply_code == 312
        channel = s.receiving.channel()
        wrong = {"alternate-exchange": "another"}
        refused(406, "inequivalent arg 'alternate-exchange'", lambda: channel.exchange_declare(first, "direct", durable=True, arguments=wrong), channel)


def bindings_between_exchanges():
    with Scene() as s:
        a, b = s.exchange("fanout"), s.exchange("topic")
        queue = s.bound(b, "x.#")
        s.into.exchange_bind(b, a, "")
        s.into.exchange_bind(a, b, "#")  # a circle
        s.out.confirm_delivery()
        s.out.basic_publish(a, "x.y", b"1")
        s.out.basic_publish(a, "y", b"2")
        assert s.drain(queue) == ["1"]
        s.into.exchange_unbind(b, a, "")
        s.out.basic_publish(a, "x.y", b"3")
        assert s.drain(queue) == []
        inner = s.exchange("fanout", internal=True)
        s.into.exchange_bind(inner, a, "")
        s.into.queue_bind(queue, inner)
        s.out.basic_publish(a, "k", b"4")
        assert s.drain(queue) == ["4"]
        channel = s.sending.channel()
        refused(403, "cannot publish to internal exchange", lambda: channel.basic_publish(inner, "", b"x"), channel)
        short = s.exchange("fanout", auto_delete=True)
        s.into.queue_bind(queue, short)
        s.into.queue_unbind(queue, short)
        channel = s.sending.channel()
        refused(404, "no exchange", lambda: channel.exchange_declare(short, passive=True), channel)


def headers():
    with Scene() as s:
        exchange = s.exchange("headers")
        modes = ["all", "any", "all-with-x", "any-with-x"]
        queues = [s.bound(exchange, arguments={"x-match": mode, "a": 1, "x-b": "2"}) for mode in modes]
        s.out.confirm_delivery()
        cases = [
            ({"a": 1}, ["all", "any", "any-with-x"]),
            ({"x-b": "2"}, ["any-with-x"]),
            ({"a": 1, "x-b": "2"}, modes),
            ({"a": "1"}, []),
        ]
        for fields, wanted in cases:
            s.out.basic_publish(exchange, "", b"m", pika.BasicProperties(headers=fields))
            got = [mode for mode, queue in zip(modes, queues) if s.drain(queue)]
            assert got == wanted, (fields, got)
        channel = s.receiving.channel()
        odd = {"x-match": "odd"}
        refused(406, "Invalid x-match field value", lambda: channel.queue_bind(queues[0], exchange, arguments=odd), channel)


def consistent_hashing():
    with Scene() as s:
        exchange = s.exchange("x-consistent-hash", arguments={"hash-header": "customer"})
        light, heavy = s.bound(exchange, "1"), s.bound(exchange, "3")
        s.out.confirm_delivery()
        for n in range(400):
            fields = pika.BasicProperties(headers={"customer": "c%d" % (n % 100)})
            s.out.basic_publish(exchange, "key-%d" % n, b"%d" % (n % 100), fields)
        one, two = s.drain(light), s.drain(heavy)
        assert len(one) + len(two) == 400 and not set(one) & set(two), "a customer's messages stay together"
        assert 20 < len(one) < 200 < len(two), (len(one), len(two))
        for node in (s.sending, s.receiving):
            channel = node.channel()
            channel.confirm_delivery()
            channel.basic_publish(exchange, "k", b"same", pika.BasicProperties(headers={"customer": "c7"}))
        assert sorted([s.drain(light), s.drain(heavy)]) == [[], ["same", "same"]], "through every node to the same queue"
        channel = s.receiving.channel()
        refused(406, "The binding key must be an integer", lambda: channel.queue_bind(light, exchange, "heavy"), channel)


def random_and_modulus():
    with Scene() as s:
        s.out.confirm_delivery()
        for kind in ("x-random", "x-modulus-hash"):
            exchange = s.exchange(kind)
            queues = [s.bound(exchange, "k%d" % n) for n in range(3)]
            for n in range(60):
                s.out.basic_publish(exchange, "key-%d" % n, b"m")
            counts = [len(s.drain(queue)) for queue in queues]
            assert sum(counts) == 60 and min(counts) > 3, (kind, counts)


def local_random():
    with Scene() as s:
        near = s.exchange("x-local-random")
        queue = s.bound(near)
        hits = 0
        for address in {SENDER, RECEIVER}:
            connection = connect(address)
            channel = connection.channel()
            channel.confirm_delivery()
            try:
                channel.basic_publish(near, "k", b"m", mandatory=True)
                hits += 1
            except UnroutableError:
                pass
            connection.close()
        assert len(s.drain(queue)) == hits <= 1, "taken by the node that leads the queue only"


def copies():
    with Scene() as s:
        a, b, c = s.queue(), s.queue(), s.queue()
        s.out.confirm_delivery()
        s.out.basic_publish("", a, b"m", pika.BasicProperties(headers={"CC": [b], "BCC": [c], "kept": 1}))
        for queue in (a, b, c):
            _, properties, body = s.into.basic_get(queue, auto_ack=True)
            assert body == b"m" and properties.headers == {"CC": [b], "kept": 1}, properties
        topic = s.exchange("topic")
        s.into.queue_bind(a, topic, "x.*")
        s.into.queue_bind(b, topic, "#.z")
        s.out.basic_publish(topic, "none", b"n", pika.BasicProperties(headers={"CC": ["x.y", "x.z"]}))
        assert (s.drain(a), s.drain(b)) == (["n"], ["n"]), "once each"
        channel = s.sending.channel()
        wrong = pika.BasicProperties(headers={"CC": "text"})
        refused(406, "unacceptable_type_in_header", lambda: channel.basic_publish("", a, b"m", wrong), channel)


def wait_for(connection, condition):
    until = time.time() + PATIENCE
    while not condition() and time.time() < until:
        connection.process_data_events(time_limit=0.05)
    assert condition()


def direct_replies():
    with Scene() as s:
        server_queue = s.queue()

        def answer(channel, method, properties, body):
            channel.basic_publish("", properties.reply_to, body.upper(), pika.BasicProperties(correlation_id=properties.correlation_id))
            channel.basic_ack(method.delivery_tag)

        answering = s.into.basic_consume(server_queue, answer)
        replies = []
        s.out.basic_consume(REPLY_TO, lambda _c, method, properties, body: replies.append((properties.correlation_id, body)), auto_ack=True)
        for n in range(20):
            s.out.basic_publish("", server_queue, b"ask %d" % n, pika.BasicProperties(reply_to=REPLY_TO, correlation_id=str(n)))
        until = time.time() + PATIENCE
        while len(replies) < 20 and time.time() < until:
            s.receiving.process_data_events(time_limit=0.02)
            s.sending.process_data_events(time_limit=0.02)
        assert replies == [(str(n), b"ASK %d" % n) for n in range(20)], replies

        # The address lives as long as its consumer.
        s.into.basic_cancel(answering)
        asking = s.sending.channel()
        asking.basic_consume(REPLY_TO, lambda *_: None, auto_ack=True)
        asking.basic_publish("", server_queue, b"x", pika.BasicProperties(reply_to=REPLY_TO))
        looking = s.receiving.channel()
        address = next(looking.consume(server_queue, auto_ack=True, inactivity_timeout=PATIENCE))[1].reply_to
        assert address.startswith(REPLY_TO + "."), address
        looking.cancel()
        looking.queue_declare(address, passive=True)
        asking.close()
        until = time.time() + PATIENCE
        while True:
            channel = s.receiving.channel()
            try:
                channel.queue_declare(address, passive=True)
                assert time.time() < until, "the address outlives its consumer"
                channel.close()
            except ChannelClosedByBroker as error:
                assert error.reply_code == 404, error
                break

        channel = s.sending.channel()
        refused(406, "reply consumer cannot acknowledge", lambda: channel.basic_consume(REPLY_TO, lambda *_: None), channel)
        channel = s.sending.channel()
        asks = pika.BasicProperties(reply_to=REPLY_TO)
        refused(406, "fast reply consumer does not exist", lambda: channel.basic_publish("", server_queue, b"x", asks), channel)


def a_deleted_queue_cancels_its_consumers():
    with Scene() as s:
        queue = s.queue()
        cancelled = []
        s.into.add_on_cancel_callback(lambda frame: cancelled.append(frame.method.consumer_tag))
        tag = s.into.basic_consume(queue, lambda *_: None)
        s.out.queue_delete(queue)
        wait_for(s.receiving, lambda: cancelled)
        assert cancelled == [tag]
        s.into.queue_declare(REPLY_TO, passive=True)


def settling_many_and_recover():
    with Scene() as s:
        queue = s.queue()
        s.out.confirm_delivery()
        for n in range(6):
            s.out.basic_publish("", queue, b"%d" % n)
        tags = [s.into.basic_get(queue)[0].delivery_tag for _ in range(6)]
        s.into.basic_nack(tags[1], multiple=True, requeue=True)
        again = [s.into.basic_get(queue) for _ in range(2)]
        assert [(body, method.redelivered) for method, _, body in again] == [(b"0", True), (b"1", True)]
        s.into.basic_reject(again[0][0].delivery_tag, requeue=False)
        s.into.basic_recover(requeue=True)
        left = [s.into.basic_get(queue) for _ in range(5)]
        assert [body for _, _, body in left] == [b"1", b"2", b"3", b"4", b"5"], left
        assert all(method.redelivered for method, _, _ in left)
        s.into.basic_ack(0, multiple=True)
        assert s.into.basic_get(queue)[0] is None
        channel = s.receiving.channel()
        refused(406, "unknown delivery tag 9", lambda: channel.basic_ack(9), channel)


def limits_and_small_methods():
    with Scene() as s:
        channel = s.sending.channel()
        refused(406, "is larger than configured max size", lambda: channel.basic_publish("", "q", bytes((16 << 20) + 1)), channel)
        assert s.sending.is_open
        s.sending.update_secret("new", "because")
        assert s.out.flow(True)
        broken = connect(SENDER)
        try:
            broken.channel().basic_qos(prefetch_size=1)
            raise AssertionError("prefetch_size is not refused")
        except AMQPConnectionError as error:
            assert error.reply_code == 540, error
        queue = s.queue()
        broken = connect(RECEIVER)
        channel = broken.channel()
        channel._impl._send_method(pika.spec.Basic.Publish(exchange="", routing_key=queue, immediate=True), (pika.BasicProperties(), b"x"))
        try:
            for _ in range(PATIENCE * 20):
                broken.process_data_events(time_limit=0.05)
            raise AssertionError("immediate is not refused")
        except AMQPConnectionError as error:
            assert error.reply_code == 540 and "immediate=true" in error.reply_text, error
        for _ in range(3):  # every number may be used again
            channel = s.sending.channel()
            channel.close()
        assert collections.Counter(s.drain(queue)) == {}


LESSONS = (
    transactions,
    transactions_refuse,
    alternate_exchanges,
    bindings_between_exchanges,
    headers,
    consistent_hashing,
    random_and_modulus,
    local_random,
    copies,
    direct_replies,
    a_deleted_queue_cancels_its_consumers,
    settling_many_and_recover,
    limits_and_small_methods,
)
failed = 0
for lesson in LESSONS:
    try:
        lesson()
        print("ok   %s" % lesson.__name__, flush=True)
    except Exception:
        failed += 1
        print("FAIL %s" % lesson.__name__, flush=True)
        traceback.print_exc(file=sys.stdout)
sys.exit(1 if failed else 0)
