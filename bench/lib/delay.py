#!/usr/bin/env python3
"""A proxy that gives loopback the latency of a remote site: delay.py LISTEN_PORT TARGET_PORT ROUND_TRIP_MS.

Forwards data half a round trip later, in both directions. A new connection takes one more round trip, as TCP's handshake does.
Does not limit the bandwidth. Runs until it is killed.
"""

import asyncio
import sys


async def pump(reader, writer, delay_s, first_s=0.0):
    """Writes each piece `delay_s` after it was read. Reading continues meanwhile, so the bandwidth is not limited."""
    queue = asyncio.Queue(maxsize=64)
    loop = asyncio.get_running_loop()

    async def deliver():
        while (piece := await queue.get()) is not None:
            at, data = piece
            await asyncio.sleep(max(0.0, at - loop.time()))
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    delivering = asyncio.create_task(deliver())
    earliest = loop.time() + first_s
    while data := await reader.read(1 << 18):
        await queue.put((max(earliest, loop.time()) + delay_s, data))
    await queue.put(None)
    await delivering


async def serve(listen, target, round_trip_s):
    async def connected(reader, writer):
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", target)
            half = round_trip_s / 2
            await asyncio.gather(pump(reader, to_writer, half, round_trip_s), pump(to_reader, writer, half))
            to_writer.close()
        except OSError:
            pass
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", listen, backlog=256)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000))
