"""What the programs of this folder share: clients of a node, messages with numbers, and waiting."""
import asyncio

from rstream import AMQPMessage, Consumer, ConsumerOffsetSpecification, OffsetType, Producer, amqp_decoder

LOGIN = {"username": "guest", "password": "guest"}
PATIENCE = 60


def address(node):
    host, port = node.rsplit(":", 1)
    return {"host": host, "port": int(port), **LOGIN}


def producer(node, **more):
    return Producer(**address(node), **more)


def consumer(node, **more):
    return Consumer(**address(node), **more)


def message(text, publishing_id=None, properties=None):
    made = AMQPMessage(body=text.encode(), application_properties=properties)
    if publishing_id is not None:
        made.publishing_id = publishing_id
    return made


def text_of(received):
    body = received.body
    return b"".join(body).decode() if isinstance(body, (list, tuple)) else bytes(body).decode()


async def until(condition, what):
    """Wait until it holds; fail with what it is about."""
    for _ in range(PATIENCE * 20):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("waited in vain: %s" % (what() if callable(what) else what))


async def read(node, stream, count, start=None, settle=0.0, secure=None, **more):
    """The first `count` messages from `start` on, as (offset, text); fails when there are more within `settle` seconds."""
    got = []
    client = consumer(node, ssl_context=secure)
    await client.start()
    start = start or ConsumerOffsetSpecification(OffsetType.FIRST, None)
    await client.subscribe(stream=stream, callback=lambda m, context: got.append((context.offset, text_of(m))), decoder=amqp_decoder,
                           offset_specification=start, **more)
    try:
        await until(lambda: len(got) >= count, lambda: "%d of %d messages from %s" % (len(got), count, node))
        await asyncio.sleep(settle)
    finally:
        await client.close()
    return got


def at(offset):
    return ConsumerOffsetSpecification(OffsetType.OFFSET, offset)
