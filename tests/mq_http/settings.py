"""What a server is told holds where topics say nothing.

settings.py ENDPOINT
The server makes topics by itself; messages are invisible for 2 s, in order for 3 s; they are delivered again once.
"""
import sys
import time

from stage import check, client, consumer, equal, fetch, fetch_all, message, producer, refused, run

AT = sys.argv[1]


def a_topic_is_made_when_it_is_first_used():
    equal(fetch(consumer(AT, "consumed", "GID_made"), wait=0), [], "a topic that nobody made")
    producer(AT, "consumed").publish_message(message("one"))
    equal([m.message_body for m in fetch_all(consumer(AT, "consumed", "GID_made"), 1)], ["one"], "what came")
    producer(AT, "published").publish_message(message("nobody wants it"))
    refused("TopicNotExist", lambda: producer(AT, "no@name").publish_message(message("x")), "what cannot be a name")


def equal_publishes_are_messages_of_their_own():
    fetch(consumer(AT, "twins", "GID_twins"), wait=0)
    sent = [producer(AT, "twins").publish_message(message("the same", "tag", key="k", a="1")) for _ in range(2)]
    got = fetch_all(consumer(AT, "twins", "GID_twins"), 2)
    equal(sorted(m.message_id for m in got), sorted(m.message_id for m in sent), "both of them")
    check(sent[0].message_id != sent[1].message_id, "two ids")


def again(group, orderly, invisible_ms):
    """A message that comes twice, and no more."""
    at = consumer(AT, "again", group)
    fetch(at, wait=0, orderly=orderly)
    sent = producer(AT, "again").publish_message(message("again", key="k"))
    if orderly:
        producer(AT, "again").publish_message(message("behind it", key="k"))
    times = []
    for _ in range(2):
        [m] = fetch(at, most=1, wait=20, orderly=orderly)
        check(abs(m.next_consume_time - time.time() * 1000 - invisible_ms) < 1500, "the time of the server: %r" % m.next_consume_time)
        equal(m.message_id, sent.message_id, "the same message")
        times.append(m.consumed_times)
    equal(times, [1, 2], "deliveries")
    equal([m.message_id for m in fetch_all(consumer(AT, "%DLQ%" + group, group), 1)], [sent.message_id], "then it is a dead letter")
    return at


def the_servers_times_and_retries_hold():
    again("GID_plain", False, 2000)


def in_order_a_message_comes_again_before_those_behind_it():
    at = again("GID_ordered", True, 3000)
    [m] = fetch(at, wait=20, orderly=True)
    equal((m.message_body, m.consumed_times), ("behind it", 1), "now it is its turn")
    at.ack_message([m.receipt_handle])


def an_unknown_key_is_told_so():
    refused("InvalidAccessKeyId", lambda: client(AT, "nobody", "x").get_producer("", "twins").publish_message(message("x")), "an unknown key")


run([
    a_topic_is_made_when_it_is_first_used,
    equal_publishes_are_messages_of_their_own,
    the_servers_times_and_retries_hold,
    in_order_a_message_comes_again_before_those_behind_it,
    an_unknown_key_is_told_so,
])
