"""One publish with a key: prints `good`, or the kind of the error.

key.py ENDPOINT TOPIC KEY SECRET
"""
import sys

from mq_http_sdk.mq_exception import MQServerException

from stage import client, message

AT, TOPIC, KEY, SECRET = sys.argv[1:5]
try:
    client(AT, KEY, SECRET).get_producer("", TOPIC).publish_message(message("x"))
    print("good")
except MQServerException as error:
    print(error.type)
