"""The protocol over TLS, with the standard library: the SDK for Python 3 speaks none.

over_tls.py HOST PORT CA
"""
import base64
import hashlib
import hmac
import http.client
import ssl
import sys
import time

HOST, PORT, CA = sys.argv[1], int(sys.argv[2]), sys.argv[3]

connection = http.client.HTTPSConnection(HOST, PORT, timeout=20, context=ssl.create_default_context(cafile=CA))
target, date = "/topics/none/messages?consumer=g&numOfMessages=1", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
signed = "GET\n\n\n%s\nx-mq-version:2015-06-06\n%s" % (date, target)
signature = base64.b64encode(hmac.new(b"guest", signed.encode(), hashlib.sha1).digest()).decode()
for _ in range(2):
    headers = {"Date": date, "x-mq-version": "2015-06-06", "Authorization": "MQ guest:" + signature}
    connection.request("GET", target, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    assert answer.status == 404 and "<Code>TopicNotExist</Code>" in text, (answer.status, text)
print("answered over", connection.sock.version())
