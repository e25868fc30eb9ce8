"""A TCP proxy before the broker that slows down, cuts, or goes away; what a bad network does."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.kafka_broker import KafkaBroker

_CHUNK = 4096


class Proxy:
    """Forwards to the broker's listener PROXIED.

    Attributes:
        bytes_per_s: of each connection, towards the client; None: as fast as it goes.
        connections: how many there have been.
    """

    def __init__(self, broker: KafkaBroker) -> None:
        self._to, self.port = broker.proxied
        self.bytes_per_s: float | None = None
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset every connection."""
        self._loop.call_soon_threadsafe(self._reset)

    def _reset(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, ready: threading.Event, end: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        ready.set()
        await end.wait()
        server.close()
        self._reset()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self._to)
            self._writers.add(to_broker)
            await asyncio.gather(self._pump(reader, to_broker), self._pump(from_broker, writer, slow=True))
            self._writers.discard(to_broker)
        self._writers.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, slow: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                writer.write(data)
                await writer.drain()
                if slow and self.bytes_per_s is not None:
                    await asyncio.sleep(len(data) / self.bytes_per_s)  # this is the slowness
        writer.transport.abort()


@contextmanager
def proxied(broker: KafkaBroker) -> Iterator[Proxy]:
    """A running proxy for a `with` block."""
    proxy, ready, end = Proxy(broker), threading.Event(), asyncio.Event()
    thread = threading.Thread(target=proxy._loop.run_until_complete, args=(proxy.serve(ready, end),))
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(end.set)
        thread.join()
        proxy._loop.close()
