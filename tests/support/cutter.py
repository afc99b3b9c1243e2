"""A TCP relay that ends its open connections on request, in the ways in which networks do.

Invariant: until it is cut, a connection's bytes pass unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import threading

_CHUNK = 65536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER with zero seconds: closing sends RST."""


class Cut(enum.Enum):
    RESET = "RST to both ends"
    END = "FIN to both ends"
    SILENCE = "nothing passes any more, and no end of stream is sent"


class _Connection:
    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.silent = False

    def cut(self, how: Cut) -> None:
        self.silent = how is Cut.SILENCE
        for writer in () if self.silent else self._writers:
            if how is Cut.RESET:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()
            else:
                writer.close()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forwards bytes and the end of the stream."""
        with contextlib.suppress(ConnectionError, RuntimeError):
            while (chunk := await reader.read(_CHUNK)) and not self.silent:
                writer.write(chunk)
                await writer.drain()
            if self.silent:
                await asyncio.Event().wait()
            writer.write_eof()


class Cutter:
    """Listens on `address` until stopped, and connects to `upstream`."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream.split(":")
        self._open: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cutter", daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self._server.sockets[0].getsockname()[1]

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._upstream
        try:
            server_reader, server_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        connection = _Connection(writer, server_writer)
        self._open.add(connection)
        try:
            ways = connection.forward(reader, server_writer), connection.forward(server_reader, writer)
            await asyncio.gather(*ways)
        except asyncio.CancelledError:
            """The relay is being stopped."""
        finally:
            self._open.discard(connection)
            writer.close()
            server_writer.close()

    def cut(self, how: Cut) -> int:
        """Cuts all connections that are open now. Returns their number."""

        async def cut_all() -> int:
            connections = [connection for connection in self._open if not connection.silent]
            for connection in connections:
                connection.cut(how)
            return len(connections)

        return self._call(cut_all())

    def stop(self) -> None:
        async def cancel_all() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._call(cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
