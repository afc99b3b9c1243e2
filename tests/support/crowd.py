"""Thousands of concurrent websocket sessions and their app server, on raw sockets in one thread."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import resource
import threading
from typing import Coroutine

from support import known

_KEY = re.compile(rb"sec-websocket-key: *(\S+)\r\n", re.IGNORECASE)
_END = b"\r\n\r\n"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_BINARY, _PING, _PONG = 0x82, 0x89, 0x8A
FILE_HANDLES = 12_000
"""Needed for 5,000 sessions: two sockets each, and a reserve."""
_MAX_CONCURRENT_HANDSHAKES = 50
_MASK = bytes(4)
"""A mask of zeros leaves the payload as it is."""


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2, len(payload)]) + payload


def _new_session(version: str) -> bytes:
    """`ForwardMsg.new_session.initialize.environment_info.streamlit_version`, as one message."""
    message = _field(4, _field(1, _field(3, _field(1, version.encode()))))
    return bytes([_BINARY, len(message)]) + message


class Crowd:
    """An app server at `address` that sends its version and answers pings, and browsers that connect to it."""

    def __init__(self, version: str) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert hard >= FILE_HANDLES, f"ulimit -Hn is {hard}: a crowd needs {FILE_HANDLES}"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._hello = _new_session(version)
        self._loop = asyncio.new_event_loop()
        self._browsers: list[asyncio.StreamWriter] = []
        self._apps: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024))
        self.address = "127.0.0.1:%d" % self._server.sockets[0].getsockname()[1]

    def _run(self, work: Coroutine):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=300)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._apps.add(writer)
        try:
            key = _KEY.search(await reader.readuntil(_END))[1]
            accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n")
            writer.write(b"Sec-WebSocket-Protocol: streamlit\r\n")
            writer.write(b"Sec-WebSocket-Accept: " + accept + _END + self._hello)
            while True:
                kind, length = await reader.readexactly(2)
                mask, payload = await reader.readexactly(4), await reader.readexactly(length & 0x7F)
                if kind == _PING:
                    plain = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
                    writer.write(bytes([_PONG, len(plain)]) + plain)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._apps.discard(writer)
            writer.close()

    async def _open(self, sidecar: str, slots: asyncio.Semaphore) -> None:
        async with slots:
            host, port = sidecar.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            self._browsers.append(writer)
            writer.write(
                b"GET /_stcore/stream HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Protocol: streamlit\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: " + base64.b64encode(bytes(16)) + _END
            )
            head = await reader.readuntil(_END)
            assert head.startswith(b"HTTP/1.1 101 "), head
            await reader.readexactly(len(self._hello))

    def open(self, sidecar: str, sessions: int) -> None:
        """Opens that many sessions; returns after each has received the server's version."""

        async def all_of_them() -> None:
            slots = asyncio.Semaphore(_MAX_CONCURRENT_HANDSHAKES)
            await asyncio.gather(*(self._open(sidecar, slots) for _ in range(sessions)))

        self._run(all_of_them())

    def send_heartbeats(self) -> None:
        """Sends one in each session; the acks are not read."""
        frame = bytes([_BINARY, 0x80 | len(known.HEARTBEAT)]) + _MASK + known.HEARTBEAT

        async def all_of_them() -> None:
            for browser in self._browsers:
                browser.write(frame)

        self._run(all_of_them())

    def disconnect_browsers(self) -> None:
        """Every browser aborts its connection."""

        async def all_of_them() -> None:
            for browser in self._browsers:
                browser.transport.abort()
            self._browsers.clear()

        self._run(all_of_them())

    def stop(self) -> None:
        async def all_of_them() -> None:
            self._server.close()
            for writer in [*self._browsers, *self._apps]:
                writer.transport.abort()

        self._run(all_of_them())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
