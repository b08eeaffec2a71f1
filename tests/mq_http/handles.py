"""One thing at a time with topic `held` and group GID_held, for a test that kills nodes in between.

handles.py publish ENDPOINT BODY
handles.py take ENDPOINT SECONDS        one message at most: prints its handle, times and body
handles.py ack ENDPOINT HANDLE          prints `good` or `bad`
handles.py try ENDPOINT BODY            publishes once, and prints the kind of the error
"""
import sys
import time

from mq_http_sdk.mq_exception import MQExceptionBase, MQServerException

from stage import consumer, equal, fetch, message, producer

WHAT, AT, WITH = sys.argv[1:4]
GROUP = "GID_held"


def take(seconds):
    until = time.time() + seconds
    while True:
        try:
            got = fetch(consumer(AT, "held", GROUP), most=1, wait=2)
        except MQServerException as error:
            equal(error.type, "ServiceUnavailable", "while nobody leads")
            got = []
        if got or time.time() > until:
            return got


def ack(handle):
    until = time.time() + 60
    while True:
        try:
            consumer(AT, "held", GROUP).ack_message([handle])
        except MQServerException as error:
            # For some seconds nobody knows whether the node that gave it is gone.
            if error.type == "ServiceUnavailable" and time.time() < until:
                time.sleep(0.5)
                continue
            equal(error.type, "ReceiptHandleError", "a handle that is not good")
            return "bad"
        return "good"


def publish(body):
    until = time.time() + 60
    while True:
        try:
            return producer(AT, "held").publish_message(message(body))
        except MQExceptionBase:
            if time.time() > until:
                raise


if WHAT == "publish":
    publish(WITH)
elif WHAT == "take":
    for m in take(float(WITH)):
        print(m.receipt_handle, m.consumed_times, m.message_body)
elif WHAT == "try":
    try:
        producer(AT, "held").publish_message(message(WITH))
    except MQExceptionBase as error:
        print(error.type)
else:
    print(ack(WITH))
