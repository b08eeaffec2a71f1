"""One stream, two protocols, two nodes: what AMQP 0-9-1 publishes the stream protocol reads, and the other way, with properties, headers,
binary bodies, batches, filters and times. Arguments: HOST:PORT of AMQP on one node, HOST:PORT of streams on another."""
import asyncio
import datetime
import sys
import time

import pika
from rstream import (AMQPMessage, CompressionType, ConsumerOffsetSpecification, FilterConfiguration, OffsetType, Properties, amqp_decoder)
from scene import PATIENCE, at, consumer, message, producer, read, until

AMQP, STREAMS = sys.argv[1:3]
BINARY = bytes(range(256)) * 5
NAME = "crossing-%x" % time.time_ns()


def connect():
    host, port = AMQP.rsplit(":", 1)
    return pika.BlockingConnection(pika.ConnectionParameters(host, int(port), blocked_connection_timeout=PATIENCE))


def put(stream, *messages):
    """Publishes (body, properties) by AMQP, each confirmed before the next: each is a chunk."""
    connection = connect()
    channel = connection.channel()
    channel.confirm_delivery()
    for body, properties in messages:
        channel.basic_publish("", stream, body, pika.BasicProperties(**properties), mandatory=True)
    connection.close()


def take(stream, count, offset="first", **more):
    """The first `count` messages by AMQP, as (offset, body, properties)."""
    connection = connect()
    channel = connection.channel()
    channel.basic_qos(prefetch_count=50)
    arguments = {"x-stream-offset": offset, **{key.replace("_", "-"): value for key, value in more.items()}}
    got = []
    for method, properties, body in channel.consume(stream, arguments=arguments, inactivity_timeout=PATIENCE):
        assert method is not None, "%d of %d messages of %s" % (len(got), count, stream)
        got.append((properties.headers.pop("x-stream-offset"), body, properties))
        channel.basic_ack(method.delivery_tag)
        if len(got) == count:
            break
    connection.close()
    return got


async def read_whole(stream, count):
    """The first `count` messages by the stream protocol, with all that they hold."""
    got = []
    client = consumer(STREAMS)
    await client.start()
    await client.subscribe(stream=stream, callback=lambda m, context: got.append((context.offset, m)), decoder=amqp_decoder,
                           offset_specification=ConsumerOffsetSpecification(OffsetType.FIRST, None))
    await until(lambda: len(got) >= count, lambda: "%d of %d messages" % (len(got), count))
    await client.close()
    return got


def plain(value):
    """Texts as texts: the decoder leaves them as they came. What is none stays bytes."""
    if isinstance(value, (bytes, bytearray)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return bytes(value)
    return {plain(key): plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def body_of(m):
    return b"".join(m.body) if isinstance(m.body, (list, tuple)) else bytes(m.body)


async def made(stream):
    async with producer(STREAMS) as client:
        await client.create_stream(stream)
    return stream


async def from_amqp_to_the_stream_protocol():
    stream = await made(NAME + "-out")
    headers = {"text": "t", "number": 7, "yes": True, "x-mine": "kept", "deep": {"in": [1, 2]}}
    put(stream, (BINARY, dict(content_type="text/plain", content_encoding="utf-8", headers=headers, delivery_mode=2, priority=3,
                              correlation_id="c", expiration="60000", message_id="m", timestamp=1_700_000_000, app_id="app")),
        (b"", {}), (b"plain", {}))
    (first, whole), (_, empty), (third, last) = await read_whole(stream, 3)
    assert (first, third, body_of(whole), body_of(empty), body_of(last)) == (0, 2, BINARY, b"", b"plain")
    known = whole.properties
    texts = [plain(value) for value in (known.message_id, known.correlation_id, known.content_type, known.content_encoding, known.group_id)]
    assert texts == ["m", "c", "text/plain", "utf-8", "app"], known
    assert known.creation_time == 1_700_000_000_000, known
    assert (whole.header.durable, whole.header.priority, whole.header.ttl) == (True, 3, 60000), whole.header
    simple = {key: value for key, value in plain(whole.application_properties).items()}
    assert simple == {"text": "t", "number": 7, "yes": True}, simple
    annotations = plain(whole.message_annotations)
    assert (annotations["x-routing-key"], annotations["x-exchange"], annotations["x-mine"]) == (stream, "", "kept"), annotations
    # By AMQP the headers come back whole.
    (_, body, properties), = take(stream, 1)
    assert (body, properties.headers, properties.message_id) == (BINARY, headers, "m"), properties
    print("AMQP to streams: ok")


async def from_the_stream_protocol_to_amqp():
    stream = await made(NAME + "-in")
    known = Properties(message_id="m", correlation_id="c", content_type="text/plain", content_encoding="utf-8", user_id=b"guest",
                       creation_time=1_700_000_000_000, group_id="app")
    own = {"text": "t", "number": 7, "yes": True}
    async with producer(STREAMS) as client:
        await client.send_wait(stream, AMQPMessage(body=BINARY, properties=known, application_properties=own))
        for kind in (CompressionType.No, CompressionType.Gzip):
            batch = [AMQPMessage(body=b"b%d" % n, application_properties={"n": n}) for n in range(10)]
            await client.send_sub_entry(stream, sub_entry_messages=batch, compression_type=kind)
            await asyncio.sleep(0.5)
        await client.send_wait(stream, message("last"))
    (offset, body, properties), *batched, last = take(stream, 22)
    assert (offset, body, properties.headers) == (0, BINARY, own), (offset, properties)
    got = (properties.message_id, properties.correlation_id, properties.content_type, properties.content_encoding, properties.app_id)
    assert got == ("m", "c", "text/plain", "utf-8", "app"), properties
    assert (properties.timestamp, properties.user_id) == (1_700_000_000, "guest"), properties
    expected = [(1 + n, b"b%d" % (n % 10), {"n": n % 10}) for n in range(20)]
    assert [(offset, body, properties.headers) for offset, body, properties in batched] == expected, batched
    assert last[:2] == (21, b"last"), last
    # From the middle of a compressed batch.
    assert [entry[:2] for entry in take(stream, 4, offset=18)] == [(18, b"b7"), (19, b"b8"), (20, b"b9"), (21, b"last")]
    print("streams to AMQP: ok")


async def filters_of_either_side_hold_for_the_other():
    async def region(m):
        return m.application_properties["region"]

    async def want(stream, count, **how):
        got = await read(STREAMS, stream, count, filter_input=FilterConfiguration(**how), settle=0.3)
        return [text for _, text in got]

    stream = await made(NAME + "-filtered")
    values = ["eu", "us", None]
    waves = [(b"a%d-%s" % (n, str(values[n % 3]).encode()), {"headers": {"x-stream-filter-value": values[n % 3]}} if values[n % 3] else {})
             for n in range(12)]
    put(stream, *waves)
    us, unfiltered = ["a%d-us" % n for n in (1, 4, 7, 10)], ["a%d-None" % n for n in (2, 5, 8, 11)]
    assert await want(stream, 4, values_to_filter=["us"]) == us
    both = await want(stream, 8, values_to_filter=["us"], match_unfiltered=True)
    assert both == sorted(us + unfiltered, key=lambda text: int(text[1:].split("-")[0])), both
    stream = await made(NAME + "-filtering")
    async with producer(STREAMS, filter_value_extractor=region) as client:
        for n in range(8):
            await client.send_wait(stream, message("s%d" % n, properties={"region": "eu" if n % 2 else "us"}))
    async with producer(STREAMS) as client:
        await client.send_wait(stream, message("s8"))
    assert [body for _, body, _ in take(stream, 4, x_stream_filter="eu")] == [b"s1", b"s3", b"s5", b"s7"]
    got = [body for _, body, _ in take(stream, 5, x_stream_filter=["eu"], x_stream_match_unfiltered=True)]
    assert got == [b"s1", b"s3", b"s5", b"s7", b"s8"], got
    print("filters: ok")


async def times_mean_the_same():
    """A wave by each protocol, three seconds apart: a time between them finds the second one, whoever asks."""
    stream = await made(NAME + "-times")
    put(stream, (b"early", {}))
    await asyncio.sleep(3)
    between = int(time.time()) - 1
    async with producer(STREAMS) as client:
        for text in ("late", "later"):
            await client.send_wait(stream, message(text))
    start = ConsumerOffsetSpecification(OffsetType.TIMESTAMP, between * 1000)
    assert await read(STREAMS, stream, 2, start) == [(1, "late"), (2, "later")]
    moment = datetime.datetime.fromtimestamp(between, datetime.timezone.utc)
    assert [entry[:2] for entry in take(stream, 2, offset=moment)] == [(1, b"late"), (2, b"later")]
    for interval in ("1h", "60m", "1D"):
        assert [body for _, body, _ in take(stream, 3, offset=interval)] == [b"early", b"late", b"later"], interval
    assert [text for _, text in await read(STREAMS, stream, 1, at(2))][-1] == "later"
    print("times: ok")


async def main():
    await from_amqp_to_the_stream_protocol()
    await from_the_stream_protocol_to_amqp()
    await filters_of_either_side_hold_for_the_other()
    await times_mean_the_same()


asyncio.run(asyncio.wait_for(main(), 300))
