"""A publisher and readers of a stream under faults, with pika.

    stream_load.py publish HOST:PORT STREAM COUNT     numbers from 0 on, each confirmed before the next; says how far it is
    stream_load.py read HOST:PORT STREAM COUNT        all of them: offsets without a gap, each number once and in its place
    stream_load.py follow HOST:PORT STREAM COUNT      the same, from before they are there
"""
import sys

import pika

what, address, stream, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
host, port = address.rsplit(":", 1)
connection = pika.BlockingConnection(pika.ConnectionParameters(host, int(port), blocked_connection_timeout=120, socket_timeout=120))
channel = connection.channel()
if what == "publish":
    channel.confirm_delivery()
    for n in range(count):
        channel.basic_publish("", stream, b"%d" % n, mandatory=True)
        if n % 100 == 0:
            print("confirmed", n, flush=True)
else:
    channel.basic_qos(prefetch_count=50)
    print("reading", flush=True)
    expected = 0
    for method, properties, body in channel.consume(stream, arguments={"x-stream-offset": "first"}, inactivity_timeout=120):
        assert method is not None, "nothing after %d of %d" % (expected, count)
        found = (properties.headers["x-stream-offset"], int(body))
        assert found == (expected, expected), "%s instead of %d" % (found, expected)
        channel.basic_ack(method.delivery_tag)
        expected += 1
        if expected == count:
            break
connection.close()
print("done", flush=True)
