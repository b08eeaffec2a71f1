"""What the first five tutorials of RabbitMQ teach, through pika: hello world, work queues, publish/subscribe, routing, topics.

    tutorials.py HOST:PORT HOST:PORT     senders use the first node, receivers the second

Prints a line for each and exits 1 if one failed. Every queue that may be is durable, so that replication is what is used.
"""
import sys
import threading
import time
import traceback
import uuid

import pika

SENDER, RECEIVER = sys.argv[1], sys.argv[2]
RUN = uuid.uuid4().hex[:8]
PATIENCE = 30


def connect(address):
    host, port = address.rsplit(":", 1)
    parameters = pika.ConnectionParameters(host, int(port), blocked_connection_timeout=PATIENCE, socket_timeout=PATIENCE)
    return pika.BlockingConnection(parameters)


def take(channel, queue, count, auto_ack=False):
    """The next `count` bodies of a queue, each acknowledged after it was seen."""
    got = []
    for method, properties, body in channel.consume(queue, auto_ack=auto_ack, inactivity_timeout=PATIENCE):
        if method is None:
            raise AssertionError("only %r came" % got)
        got.append(body.decode())
        if not auto_ack:
            channel.basic_ack(method.delivery_tag)
        if len(got) == count:
            break
    channel.cancel()
    return got


def hello_world():
    queue = "hello-" + RUN
    sending, receiving = connect(SENDER), connect(RECEIVER)
    out, into = sending.channel(), receiving.channel()
    out.queue_declare(queue, durable=True)
    into.queue_declare(queue, durable=True)
    out.basic_publish("", queue, b"Hello World!")
    assert take(into, queue, 1, auto_ack=True) == ["Hello World!"]
    into.queue_delete(queue)
    sending.close()
    receiving.close()


def work_queues():
    queue = "tasks-" + RUN
    sending = connect(SENDER)
    out = sending.channel()
    out.confirm_delivery()
    out.queue_declare(queue, durable=True)
    done, lock, others_done = {}, threading.Lock(), threading.Event()
    tasks = ["task %d" % n for n in range(12)]

    def work(name, address):
        connection = connect(address)
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)

        def on_task(channel, method, properties, body):
            if name == "slow":  # its first task takes until the quick worker has done all others
                others_done.wait(PATIENCE)
            with lock:
                done.setdefault(name, []).append(body.decode())
                if len(done.get("quick", [])) >= len(tasks) - 1:
                    others_done.set()
            channel.basic_ack(method.delivery_tag)

        channel.basic_consume(queue, on_task)
        until = time.time() + PATIENCE
        while time.time() < until and sum(map(len, done.values())) < len(tasks):
            connection.process_data_events(time_limit=0.05)
        connection.close()

    workers = [threading.Thread(target=work, args=("quick", RECEIVER)), threading.Thread(target=work, args=("slow", SENDER))]
    for worker in workers:
        worker.start()
    persistent = pika.BasicProperties(delivery_mode=2, headers={"dots": 3})
    for task in tasks:
        out.basic_publish("", queue, task.encode(), persistent)
    for worker in workers:
        worker.join()
    assert sorted(sum(done.values(), [])) == sorted(tasks), done
    assert len(done.get("slow", [])) <= 1, "a worker that holds a task gets no other: %r" % done

    # A worker that dies gives its task back.
    out.basic_publish("", queue, b"orphan", persistent)
    dying = connect(RECEIVER)
    method, _, body = next(dying.channel().consume(queue, inactivity_timeout=PATIENCE))
    assert body == b"orphan" and not method.redelivered
    dying.close()
    method, _, body = next(out.consume(queue, inactivity_timeout=PATIENCE))
    assert body == b"orphan" and method.redelivered, (method, body)
    out.basic_ack(method.delivery_tag)
    out.cancel()
    out.queue_delete(queue)
    sending.close()


def with_receivers(kind, bindings, messages, expected):
    """Receivers with exclusive server-named queues, each with its binding keys; what each got is compared."""
    exchange = "%s-%s" % (kind, RUN)
    sending, receiving = connect(SENDER), connect(RECEIVER)
    out, into = sending.channel(), receiving.channel()
    out.exchange_declare(exchange, exchange_type=kind)
    into.exchange_declare(exchange, exchange_type=kind)
    queues = []
    for keys in bindings:
        queue = into.queue_declare("", exclusive=True).method.queue
        for key in keys:
            into.queue_bind(queue, exchange, routing_key=key)
        queues.append(queue)
    for key, body in messages:
        out.basic_publish(exchange, key, body.encode())
    # A message without receivers is dropped, as for anybody who came too late.
    for queue, wanted in zip(queues, expected):
        got = take(into, queue, len(wanted), auto_ack=True) if wanted else []
        assert got == wanted, (queue, got, wanted)
        assert into.basic_get(queue)[0] is None, "more came than was meant for %s" % queue
    out.exchange_delete(exchange)
    sending.close()
    receiving.close()


def publish_subscribe():
    with_receivers("fanout", [[""], [""]], [("", "info: a"), ("", "info: b")], [["info: a", "info: b"]] * 2)


def routing():
    log = [("info", "i"), ("error", "e"), ("warning", "w")]
    with_receivers("direct", [["error"], ["info", "warning", "error"], ["debug"]], log, [["e"], ["i", "e", "w"], []])


def topics():
    log = [("kern.critical", "1"), ("auth.info", "2"), ("kern", "3"), ("cron.warn.late", "4"), ("disk.critical", "5")]
    bindings = [["#"], ["kern.*"], ["*.critical"], ["kern.#", "*.critical"], ["*.*.late"]]
    expected = [["1", "2", "3", "4", "5"], ["1"], ["1", "5"], ["1", "3", "5"], ["4"]]
    with_receivers("topic", bindings, log, expected)


failed = 0
for lesson in (hello_world, work_queues, publish_subscribe, routing, topics):
    try:
        lesson()
        print("ok   %s" % lesson.__name__, flush=True)
    except Exception:
        failed += 1
        print("FAIL %s" % lesson.__name__, flush=True)
        traceback.print_exc(file=sys.stdout)
sys.exit(1 if failed else 0)
