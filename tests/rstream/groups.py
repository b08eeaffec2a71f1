"""A super stream and a group of consumers on different nodes: partitions are shared, each is read by one member, and those of a member
that goes are taken over. Arguments: the stream addresses of the nodes."""
import asyncio
import sys

from rstream import (AMQPMessage, ConsumerOffsetSpecification, OffsetSpecification, OffsetType, RouteType, SuperStreamConsumer,
                     SuperStreamProducer, amqp_decoder)
from scene import address, text_of, until

NODES = sys.argv[1:]
NAME = "orders"
PARTITIONS = ["orders-%d" % n for n in range(3)]


class Member:
    """A consumer of the group."""

    def __init__(self, node):
        self.client = SuperStreamConsumer(**address(node), super_stream=NAME)
        self.active = set()
        self.got = []

    async def start(self):
        await self.client.start()
        properties = {"single-active-consumer": "true", "name": "group", "super-stream": NAME}
        await self.client.subscribe(callback=lambda m, context: self.got.append((context.stream, context.offset, text_of(m))),
                                    decoder=amqp_decoder, properties=properties, subscriber_name="group",
                                    offset_specification=ConsumerOffsetSpecification(OffsetType.FIRST, None),
                                    consumer_update_listener=self.on_turn)

    async def on_turn(self, is_active, context):
        (self.active.add if is_active else self.active.discard)(context.stream)
        known = [offset for stream, offset, _ in EVERYTHING() if stream == context.stream]
        return OffsetSpecification(OffsetType.OFFSET, max(known) + 1) if known else OffsetSpecification(OffsetType.FIRST, 0)


MEMBERS = []


def EVERYTHING():
    return [entry for member in MEMBERS for entry in member.got]


async def publish(first, last):
    async with SuperStreamProducer(**address(NODES[0]), super_stream=NAME, routing=RouteType.Hash,
                                   routing_extractor=routing_key) as client:
        for n in range(first, last):
            await client.send(AMQPMessage(body=b"%d" % n, application_properties={"id": str(n)}))


async def routing_key(message):
    return message.application_properties["id"]


async def main():
    maker = SuperStreamProducer(**address(NODES[0]), super_stream=NAME, routing_extractor=routing_key)
    await maker.create_super_stream(NAME, n_partitions=3)
    for node in NODES[1:]:
        MEMBERS.append(Member(node))
        await MEMBERS[-1].start()
    first, second = MEMBERS
    shared = ({PARTITIONS[0], PARTITIONS[2]}, {PARTITIONS[1]})
    await until(lambda: (first.active, second.active) == shared, lambda: "turns: %s, %s" % (first.active, second.active))
    await publish(0, 90)
    await until(lambda: len(EVERYTHING()) >= 90, lambda: "%d of 90 messages" % len(EVERYTHING()))
    assert sorted(int(text) for _, _, text in EVERYTHING()) == list(range(90)), "each once"
    assert {stream for stream, _, _ in second.got} == {PARTITIONS[1]} and len({stream for stream, _, _ in first.got}) == 2
    print("a partition has one reader: ok")
    await second.client.close()
    await until(lambda: first.active == set(PARTITIONS), lambda: "turns: %s" % first.active)
    await publish(90, 180)
    await until(lambda: len(EVERYTHING()) >= 180, lambda: "%d of 180 messages" % len(EVERYTHING()))
    assert sorted(int(text) for _, _, text in EVERYTHING()) == list(range(180)), "each once"
    print("who stays takes over: ok")
    await first.client.close()
    maker = SuperStreamProducer(**address(NODES[1]), super_stream=NAME, routing_extractor=routing_key)
    await maker.delete_super_stream(NAME)
    assert not await maker.stream_exists(PARTITIONS[0])


asyncio.run(asyncio.wait_for(main(), 200))
