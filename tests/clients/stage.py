"""What the Python clients here share: who they talk to, the talk with the test that runs them, and the judgement that is the same for all.

    CLIENT.py FIRST SECOND QUEUE

FIRST and SECOND are nodes (host:port) that do not lead QUEUE, a durable queue that exists. A client prints `ok STEP` for what it has
shown, and `kill` when FIRST shall be killed; it reads `killed` when that is done. FIRST comes back by itself a moment later.
"""
import sys
import time

FIRST, SECOND, QUEUE = sys.argv[1:4] if len(sys.argv) > 3 else ("", "", "")
BODIES = [b"m%02d" % n for n in range(20)]
PREFETCH = 4
HELD = b"held"
AFTER = [b"after-%d" % n for n in range(10)]
PATIENCE = 30  # seconds


def url(node):
    return "amqp://guest:guest@%s/%%2F" % node


def ok(step):
    print("ok " + step, flush=True)


def kill():
    """FIRST dies now."""
    print("kill", flush=True)
    assert sys.stdin.readline().strip() == "killed", "nobody killed the node"


def until(condition, what):
    end = time.time() + PATIENCE
    while not condition():
        assert time.time() < end, what
        time.sleep(0.02)


def judge_prefetch(taken, waiting):
    """`taken`: the bodies that came to a consumer that acknowledges nothing; `waiting`: how many the queue then still had."""
    assert (taken, waiting) == (BODIES[:PREFETCH], len(BODIES) - PREFETCH), (taken, waiting)


def judge_requeue(deliveries):
    """All (body, redelivered) in order, when the first was given back before any other was acknowledged."""
    first = [(body, False) for body in BODIES[:PREFETCH]]
    assert deliveries == first + [(BODIES[0], True)] + [(body, False) for body in BODIES[PREFETCH:]], deliveries


def judge_reconnect(deliveries):
    """All (body, redelivered) that came after the kill: what was held is marked, what was confirmed is there, in order. What the dead
    node held comes when the leader is sure that it is gone: the others need not wait for it."""
    assert (HELD, True) in deliveries and (HELD, False) not in deliveries, deliveries
    seen = [body for body, redelivered in deliveries if not redelivered]
    assert sorted(set(seen), key=seen.index) == AFTER, deliveries


def is_all(deliveries):
    return {body for body, _ in deliveries} >= {HELD, *AFTER}
