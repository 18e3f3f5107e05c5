"""A TCP proxy that lags: every byte comes 30 to 50 ms late, and all connections share a bandwidth cap.

    python benchmarks/lag.py PORT_OF_THE_SERVER [MBIT_PER_S]

Prints its own port, and runs until it is killed or its standard input closes.
"""

from __future__ import annotations

import asyncio
import random
import sys

LATENCY_S = (0.030, 0.050)
READ_BYTES = 32 * 1024


class Bucket:
    """Lets bytes pass at one rate, whoever sends them."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.free_at = 0.0

    def due(self, n_bytes: int) -> float:
        """When these bytes are through, in the loop's time."""
        now = asyncio.get_running_loop().time()
        self.free_at = max(self.free_at, now) + n_bytes / self.bytes_per_s
        return self.free_at


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bucket: Bucket, *, is_late: bool) -> None:
    """Forward one direction; what comes from the server is late.

    A connection has one piece in the bucket at a time, so all share the cap, and a request need not wait behind
    the megabytes that another connection sends.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)

    async def send() -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                break
            writer.write(data)
            await writer.drain()
        writer.close()

    sender = asyncio.create_task(send())
    try:
        while data := await reader.read(READ_BYTES):
            await asyncio.sleep(max(0.0, bucket.due(len(data)) - loop.time()))
            await queue.put((loop.time() + (random.uniform(*LATENCY_S) if is_late else 0.0), data))
    except OSError:
        pass
    await queue.put((0.0, b""))
    await asyncio.gather(sender, return_exceptions=True)


async def serve(port: int, mbit_per_s: float) -> None:
    down, up = (Bucket(mbit_per_s * 1e6 / 8) for _ in range(2))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port, limit=2 * READ_BYTES)
        await asyncio.gather(
            pump(reader, server_writer, up, is_late=False), pump(server_reader, writer, down, is_late=True)
        )

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=2 * READ_BYTES)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1e6))
