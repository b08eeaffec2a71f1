"""aio-pika's robust connection: it comes back to the node that died, channel, prefetch and consumer with it."""
import asyncio

import aio_pika
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, PublishError

from stage import *


async def publish(channel, body, key=QUEUE):
    message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    await channel.default_exchange.publish(message, key)


async def publish_at_last(channel, body):
    while True:
        try:
            return await publish(channel, body)
        except CONNECTION_EXCEPTIONS:
            await asyncio.sleep(0.05)


async def take(arrivals, deliveries):
    message = await asyncio.wait_for(arrivals.get(), PATIENCE)
    deliveries.append((message.body, message.redelivered))
    return message


async def waiting(channel):
    """Messages that wait; asked of the broker, for the robust channel answers from memory."""
    return (await (await channel.get_underlay_channel()).queue_declare(QUEUE, passive=True)).message_count


async def main():
    connection = await aio_pika.connect_robust(url(FIRST), reconnect_interval=0.2)
    channel = await connection.channel(on_return_raises=True)
    await channel.set_qos(prefetch_count=PREFETCH)
    queue = await channel.declare_queue(QUEUE, durable=True)
    for body in BODIES:
        await publish(channel, body)
    ok("confirm")
    try:
        await publish(channel, b"lost", "nobody-" + QUEUE)
        raise AssertionError("not returned")
    except PublishError as error:
        assert "NO_ROUTE" in str(error), error
    ok("return")

    arrivals, deliveries = asyncio.Queue(), []
    await queue.consume(arrivals.put)
    messages = [await take(arrivals, deliveries) for _ in range(PREFETCH)]
    judge_prefetch([message.body for message in messages], await waiting(channel))
    ok("prefetch")
    await messages[0].nack(requeue=True)
    messages = messages[1:] + [await take(arrivals, deliveries)]
    while messages:
        await messages.pop(0).ack()
        if len(deliveries) <= len(BODIES):
            messages.append(await take(arrivals, deliveries))
    judge_requeue(deliveries)
    ok("requeue")

    await publish(channel, HELD)
    assert (await take(arrivals, [])).body == HELD
    kill()
    deliveries = []
    publishing = asyncio.create_task(publish_all(channel))
    while not is_all(deliveries):
        await (await take(arrivals, deliveries)).ack()
    await publishing
    judge_reconnect(deliveries)
    await waiting(channel)  # the acknowledgement is heard
    await connection.close()
    ok("reconnect")


async def publish_all(channel):
    for body in AFTER:
        await publish_at_last(channel, body)


asyncio.run(main())
