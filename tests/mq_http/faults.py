"""Publishers and consumers of an ordered topic while nodes are killed; the judge is in here.

faults.py ENDPOINT ENDPOINT ENDPOINT SECONDS
Nothing confirmed is lost; no message whose acknowledgement was answered comes again; of a sharding key a message comes only when all before
it are acknowledged (or may be: an acknowledgement without an answer).
"""
import random
import sys
import threading
import time

from mq_http_sdk.mq_exception import MQExceptionBase, MQServerException

from stage import check, consumer, fetch, message, producer

NODES, SECONDS = sys.argv[1:4], float(sys.argv[4])
KEYS = ["k%d" % n for n in range(6)]
# A partition in which one batch in LEFT_EVERY is left passes on some 20 messages a second, and three of the keys share one.
PER_SECOND = 10
GROUP = "GID_faults"
DRAIN = 90
# Of the batches of a consumer: one in so many is left without an acknowledgement and comes again, in order.
LEFT_EVERY = 20

lock = threading.Lock()
confirmed = {key: [] for key in KEYS}        # numbers in order
done = {key: set() for key in KEYS}          # numbers whose acknowledgement was answered, or may have been carried out
acked = {}                                   # message id -> when its acknowledgement was answered
faults, counts = [], {"published": 0, "unanswered publishes": 0, "delivered": 0, "again": 0, "left": 0, "unanswered acknowledgements": 0}
stop = threading.Event()


def publish(key, first):
    """One number after the other, each until it is confirmed: an attempt without an answer may have been carried out."""
    at, n, until = first, 0, time.time() + SECONDS
    to = producer(NODES[at], "ordered")
    while time.time() < until:
        try:
            to.publish_message(message("%s:%d" % (key, n), key=key))
        except MQExceptionBase:
            with lock:
                counts["unanswered publishes"] += 1
            at = (at + 1) % len(NODES)
            to = producer(NODES[at], "ordered")
            time.sleep(0.2)
            continue
        with lock:
            confirmed[key].append(n)
            counts["published"] += 1
        n += 1
        time.sleep(1 / PER_SECOND)


def judge(m, batch, asked_at):
    key, n = m.message_body.split(":")
    n = int(n)
    counts["delivered"] += 1
    counts["again"] += m.consumed_times > 1
    if m.message_id in acked and acked[m.message_id] < asked_at:
        faults.append("%s came again although its acknowledgement was answered" % m.message_body)
    before = {int(b.message_body.split(":")[1]) for b in batch if b.message_body.split(":")[0] == key}
    missing = [m for m in confirmed[key] if m < n and m not in done[key] and m not in before]
    if missing:
        faults.append("%s came before %r was acknowledged" % (m.message_body, missing[:3]))


def consume(first):
    at = first
    batches, chance = 0, random.Random(first)
    of = consumer(NODES[at], "ordered", GROUP)
    while not stop.is_set():
        asked_at = time.time()
        try:
            batch = fetch(of, most=8, wait=1, orderly=True)
        except MQExceptionBase:
            at = (at + 1) % len(NODES)
            of = consumer(NODES[at], "ordered", GROUP)
            time.sleep(0.2)
            continue
        if not batch:
            continue
        with lock:
            for place, m in enumerate(batch):
                judge(m, batch[:place], asked_at)
        batches += 1
        if batches % LEFT_EVERY == 0:
            with lock:
                counts["left"] += 1
            continue
        if chance.random() < 0.3:
            # Whoever gets what follows meanwhile gets it too early.
            time.sleep(chance.uniform(0, 0.3))
        with lock:
            # From here on they may be acknowledged: another consumer may get what follows before this one hears so.
            for m in batch:
                key, n = m.message_body.split(":")
                done[key].add(int(n))
        try:
            of.ack_message([m.receipt_handle for m in batch])
            bad = set()
        except MQServerException as error:
            bad = {e["ReceiptHandle"] for e in error.sub_errors or []} or {m.receipt_handle for m in batch}
        except MQExceptionBase:
            bad = {m.receipt_handle for m in batch}
        with lock:
            counts["unanswered acknowledgements"] += len(bad)
            acked.update({m.message_id: time.time() for m in batch if m.receipt_handle not in bad})


def drained():
    with lock:
        return all(set(numbers) <= done[key] for key, numbers in confirmed.items())


fetch(consumer(NODES[0], "ordered", GROUP), wait=0, orderly=True)
publishers = [threading.Thread(target=publish, args=(key, n % len(NODES))) for n, key in enumerate(KEYS)]
consumers = [threading.Thread(target=consume, args=(n,)) for n in range(3)]
for thread in publishers + consumers:
    thread.start()
for thread in publishers:
    thread.join()
until = time.time() + DRAIN
while not drained() and time.time() < until and not faults:
    time.sleep(0.2)
# What is to come again although nobody waits for it comes now.
time.sleep(4)
stop.set()
for thread in consumers:
    thread.join()
print(counts)
check(not faults, "\n".join(faults[:20]))
lost = {key: sorted(set(numbers) - done[key])[:5] for key, numbers in confirmed.items() if set(numbers) - done[key]}
check(not lost, "confirmed and never delivered: %r" % lost)
check(counts["left"] > 0, "nothing had to come again in order")
check(counts["published"] > 10 * len(KEYS), "too few were published to prove anything")
