"""Streams over TLS: a client that came to one node with TLS follows the addresses that it is told, with TLS too.
Arguments: the authority's certificate, the addresses of the nodes' ports with TLS."""
import asyncio
import ssl
import sys

from scene import message, producer, read

CA, NODES = sys.argv[1], sys.argv[2:]


async def main():
    context = ssl.create_default_context(cafile=CA)
    for n, node in enumerate(NODES):
        name, reader = "tls-%d" % n, NODES[(n + 1) % len(NODES)]
        async with producer(node, ssl_context=context) as client:
            await client.create_stream(name)
            for k in range(20):
                await client.send_wait(name, message("m%d" % k))
        got = await read(reader, name, 20, secure=context)
        assert got == [(k, "m%d" % k) for k in range(20)], got
        print("streams over TLS through %s: ok" % node)


asyncio.run(asyncio.wait_for(main(), 120))
