"""Publishes numbered messages to streams through one node until its input ends, then reads every stream through another: all that was
confirmed is there, once, in order. Arguments: both nodes, the streams. Says `publishing` when each stream has had its first confirm."""
import asyncio
import sys

from scene import message, producer, read, until

NODE, READER, STREAMS = sys.argv[1], sys.argv[2], sys.argv[3:]


async def publish(client, stream, confirmed, stop):
    """As a named publisher: what is sent again is stored once."""
    n = 0
    while not stop.is_set():
        n += 1
        await client.send(stream, message(str(n), n), publisher_name="load",
                          on_publish_confirm=lambda status: confirmed.append((status.message_id, status.is_confirmed)))
        await asyncio.sleep(0.005)
    await until(lambda: len(confirmed) >= n, lambda: "%d of %d confirms of %s" % (len(confirmed), n, stream))
    return n


async def main():
    stop, confirmed = asyncio.Event(), {stream: [] for stream in STREAMS}
    async with producer(NODE, default_batch_publishing_delay=0.01) as client:
        for stream in STREAMS:
            await client.create_stream(stream)
        publishers = [asyncio.create_task(publish(client, stream, confirmed[stream], stop)) for stream in STREAMS]
        await until(lambda: all(confirmed.values()), "first confirms")
        print("publishing", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        stop.set()
        sent = await asyncio.gather(*publishers)
    for stream, count in zip(STREAMS, sent):
        refused = [n for n, is_confirmed in confirmed[stream] if not is_confirmed]
        assert not refused, "%s: %d of %d not confirmed" % (stream, len(refused), count)
        got = await read(READER, stream, count, settle=0.5)
        assert got == [(n - 1, str(n)) for n in range(1, count + 1)], (stream, count, len(got))
    print("%d messages in %d streams: ok" % (sum(sent), len(STREAMS)))


asyncio.run(asyncio.wait_for(main(), 300))
