"""Half messages while nodes are killed; the judge is in here.

halves.py ENDPOINT ENDPOINT ENDPOINT SECONDS
Each message says in its body what is to become of it. Of those whose publish was confirmed: what is to be committed is consumed once it was
committed and not before, and once; what is to be rolled back never is. What nobody decided comes to be checked, through whichever node
lives, and what was decided, as its client heard, does not. A publish's handle is worth nothing once its time is over.
"""
import random
import sys
import threading
import time

from mq_http_sdk.mq_exception import MQExceptionBase, MQServerException

from stage import check, client, consumer, fetch, message

NODES, SECONDS = sys.argv[1:4], float(sys.argv[4])
TOPIC, GROUP = "halves", "GID_halves"
IMMUNITY = 10
DRAIN = 90
# Of a node's half messages each is handed out to be checked every so many seconds; so long nothing may come at the end.
CHECKED_EVERY = 10
COMMIT, ROLLBACK = "commit", "rollback"

lock = threading.Lock()
confirmed, asked = {}, set()      # body -> id of what was published; bodies that somebody may have committed
decided = {}                      # id -> when its decision was answered
consumed, acked = {}, {}          # body -> ids that came; id -> when its acknowledgement was answered
faults = []
counts = dict.fromkeys(["published", "unanswered publishes", "decided", "unanswered decisions", "left", "late", "checked", "consumed", "again"], 0)
stop = threading.Event()


def count(what):
    with lock:
        counts[what] += 1


def trans(at):
    return client(NODES[at]).get_trans_producer("", TOPIC, GROUP)


def decide(at, body, m, verdict):
    """Whether it was answered that it is done."""
    if verdict == COMMIT:
        with lock:
            asked.add(body)
    try:
        getattr(trans(at), verdict)(m.receipt_handle)
    except MQExceptionBase:
        count("unanswered decisions")
        return False
    with lock:
        counts["decided"] += 1
        decided[m.message_id] = time.time()
    return True


def publish(first):
    chance, n, until = random.Random(first), 0, time.time() + SECONDS
    at, late = first, []
    while time.time() < until:
        verdict = chance.choice([COMMIT, ROLLBACK])
        body = "%s:%d:%d" % (verdict, first, n)
        half = message(body, "t")
        half.set_trans_check_immunity_time(IMMUNITY)
        n += 1
        try:
            m = trans(at).publish_message(half)
        except MQExceptionBase:
            count("unanswered publishes")
            at = (at + 1) % len(NODES)
            time.sleep(0.2)
            continue
        with lock:
            counts["published"] += 1
            confirmed[body] = m.message_id
        what = chance.random()
        if what < 0.6:
            # Through any node, and again through another one when that does not answer.
            for _ in range(3):
                if decide(chance.randrange(len(NODES)), body, m, verdict):
                    break
        elif what < 0.7:
            late.append((time.time() + IMMUNITY + 1, m, COMMIT if verdict == ROLLBACK else ROLLBACK))
        else:
            count("left")
        time.sleep(0.02)
    # Too late, and the opposite of what becomes of it.
    for due, m, wrong in late:
        time.sleep(max(0, due - time.time()))
        try:
            getattr(trans(chance.randrange(len(NODES))), wrong)(m.receipt_handle)
        except MQExceptionBase as error:
            if isinstance(error, MQServerException) and error.type == "ReceiptHandleError":
                count("late")
            continue
        with lock:
            faults.append("the handle of %s was good when its time was over" % m.message_id)


def look(at):
    """Checks what nobody decided."""
    while not stop.is_set():
        asked_at = time.time()
        try:
            batch = trans(at).consume_half_message(16, 1)
        except MQExceptionBase as error:
            if getattr(error, "type", "") != "MessageNotExist":
                time.sleep(0.2)
            continue
        for m in batch:
            body = m.message_body
            with lock:
                counts["checked"] += 1
                if decided.get(m.message_id, asked_at) < asked_at:
                    faults.append("%s came to be checked although its decision was answered" % body)
                if m.message_id != confirmed.get(body, m.message_id):
                    faults.append("%s came to be checked twice" % body)
            decide(at, body, m, body.split(":")[0])


def consume(at):
    of = consumer(NODES[at], TOPIC, GROUP)
    while not stop.is_set():
        asked_at = time.time()
        try:
            batch = fetch(of, wait=1)
        except MQExceptionBase:
            of = consumer(NODES[at], TOPIC, GROUP)
            time.sleep(0.2)
            continue
        for m in batch:
            body = m.message_body
            with lock:
                counts["consumed"] += 1
                counts["again"] += m.consumed_times > 1
                consumed.setdefault(body, set()).add(m.message_id)
                if body not in asked or not body.startswith(COMMIT):
                    faults.append("%s was consumed, and nobody committed it" % body)
                if len(consumed[body]) > 1 or m.message_id != confirmed.get(body, m.message_id):
                    faults.append("%s was committed twice" % body)
                if acked.get(m.message_id, asked_at) < asked_at:
                    faults.append("%s came again although its acknowledgement was answered" % body)
            try:
                of.ack_message([m.receipt_handle])
            except MQExceptionBase:
                continue
            with lock:
                acked[m.message_id] = time.time()


def missing():
    with lock:
        done = {COMMIT: acked, ROLLBACK: decided}
        return [body for body, id in confirmed.items() if id not in done[body.split(":")[0]]]


fetch(consumer(NODES[0], TOPIC, GROUP), wait=0)
publishers = [threading.Thread(target=publish, args=(n,)) for n in range(len(NODES))]
others = [threading.Thread(target=what, args=(n,)) for what in (look, consume) for n in range(len(NODES))]
for thread in publishers + others:
    thread.start()
for thread in publishers:
    thread.join()
until = time.time() + DRAIN
# A rollback or an acknowledgement whose answer was lost is not in here, and need not be: nothing comes of it any more.
quiet_at, known = time.time(), -1
while not faults and time.time() < until and time.time() < quiet_at + CHECKED_EVERY + 5:
    with lock:
        now = counts["checked"] + counts["consumed"]
    if now != known:
        quiet_at, known = time.time(), now
    time.sleep(0.2)
stop.set()
for thread in others:
    thread.join()
print(counts)
check(not faults, "\n".join(faults[:20]))
check(time.time() < until, "half messages came to be checked until the end, or messages again")
lost = [body for body in missing() if body.startswith(COMMIT) and body not in consumed]
check(not lost, "%d are to be committed and never came, such as %r" % (len(lost), lost[:5]))
check(counts["published"] > 100 and counts["left"] > 10, "too few were published to prove anything")
check(counts["checked"] > 10 and counts["late"] > 0, "nothing came to be checked")
