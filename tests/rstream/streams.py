"""Streams through each node: publish, confirm, read at offsets, deduplicate after a reconnect, store offsets, filter, batch.
Arguments: the stream addresses of the nodes."""
import asyncio
import sys

from rstream import CompressionType, FilterConfiguration, OffsetNotFound, StreamDoesNotExist
from rstream.exceptions import StreamAlreadyExists
from scene import at, consumer, message, producer, read, until

NODES = sys.argv[1:]


async def published_once_and_read_everywhere(name, sender):
    """A named publisher comes back and says everything again: it is confirmed and stored once, at the same offsets on all nodes."""
    async with producer(sender) as client:
        await client.create_stream(name, arguments={"max-age": "7D", "stream-max-segment-size-bytes": 50_000_000})
        try:
            await client.create_stream(name, arguments={"max-age": "7D", "stream-max-segment-size-bytes": 50_000_000})
            raise AssertionError("a stream was made twice")
        except StreamAlreadyExists:
            pass
    for last in (200, 250):
        confirmed = []
        async with producer(sender) as client:
            for n in range(1, last + 1):
                await client.send(name, message("m%d" % n, n), publisher_name="p",
                                  on_publish_confirm=lambda status: confirmed.append(status.is_confirmed))
            await until(lambda: len(confirmed) >= last, lambda: "%d of %d confirms" % (len(confirmed), last))
        assert all(confirmed), confirmed
    expected = [(n - 1, "m%d" % n) for n in range(1, 251)]
    for reader in NODES:
        got = await read(reader, name, 250, settle=0.3)
        assert got == expected, (reader, got[:3], len(got))
        tail = [entry for entry in await read(reader, name, 50, at(200)) if entry[0] >= 200]
        assert tail == expected[200:], (reader, tail[:3])


async def offsets_are_the_clusters(name):
    """What is stored through one node is known on all."""
    client = consumer(NODES[0])
    await client.start()
    await client.store_offset(stream=name, subscriber_name="reader", offset=123)
    assert await client.query_offset(stream=name, subscriber_name="reader") == 123, "a client sees what it stored"
    await client.close()
    for node in NODES:
        client = consumer(node)
        await client.start()
        assert await client.query_offset(stream=name, subscriber_name="reader") == 123, node
        try:
            await client.query_offset(stream=name, subscriber_name="another")
            raise AssertionError("an offset that nobody stored")
        except OffsetNotFound:
            pass
        await client.close()


async def filters_leave_chunks_out(name, sender, reader):
    """Waves of two regions in chunks of their own: who wants one gets all of it and not all of the other."""
    async def region(m):
        return m.application_properties["region"]

    async with producer(sender, filter_value_extractor=region) as client:
        await client.create_stream(name)
        for wave in range(6):
            for n in range(20):
                where = "eu" if wave % 2 == 0 else "us"
                await client.send_wait(name, message("%s-%d-%d" % (where, wave, n), properties={"region": where}))
    got = await read(reader, name, 60, filter_input=FilterConfiguration(values_to_filter=["us"]))
    wanted = [text for _, text in got if text.startswith("us")]
    assert wanted == ["us-%d-%d" % (wave, n) for wave in (1, 3, 5) for n in range(20)], wanted
    assert len(got) < 120, "the filter left nothing out"


async def batches_count_each_message(name, sender, reader):
    """Sub-entry batches, plain and compressed: each message has its offset."""
    async with producer(sender) as client:
        await client.create_stream(name)
        for kind in (CompressionType.No, CompressionType.Gzip):
            await client.send_sub_entry(name, sub_entry_messages=[message("b%d" % n) for n in range(10)], compression_type=kind)
            await asyncio.sleep(0.5)
        await client.send_wait(name, message("last"))
    got = await read(reader, name, 21)
    assert got == list(enumerate(["b%d" % n for n in range(10)] * 2 + ["last"])), got


async def a_deleted_stream_is_gone(name):
    """Readers and publishers on other nodes hear of it."""
    heard = []
    reader = consumer(NODES[1], on_close_handler=lambda info: heard.append(info.reason))
    await reader.start()
    await reader.subscribe(stream=name, callback=lambda m, context: None)
    async with producer(NODES[0]) as client:
        await client.delete_stream(name)
        try:
            await client.delete_stream(name)
            raise AssertionError("a stream was deleted twice")
        except StreamDoesNotExist:
            pass
    await until(lambda: heard, "MetadataUpdate")
    assert heard[0] == "Metadata Update", heard
    try:
        await asyncio.wait_for(reader.close(), 5)
    except Exception:  # its subscription is gone already
        pass


async def main():
    for n, sender in enumerate(NODES):
        name, reader = "streams-%d" % n, NODES[(n + 1) % len(NODES)]
        await published_once_and_read_everywhere(name, sender)
        await offsets_are_the_clusters(name)
        await filters_leave_chunks_out(name + "-filtered", sender, reader)
        await batches_count_each_message(name + "-batched", sender, reader)
        await a_deleted_stream_is_gone(name)
        print("streams through %s: ok" % sender)


asyncio.run(asyncio.wait_for(main(), 300))
