"""A relay in front of an app server or a sidecar. It adds an allowed origin, or blackholes websockets.

Streamlit before 1.55 hard-codes the allowed origins; platforms answer `_stcore/host-config` themselves.
Invariant: all other bytes pass unchanged.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import socketserver
import threading

from support import http

_HOST_CONFIG = re.compile(rb"GET \S*/_stcore/host-config[ ?]")
_END_OF_HEAD = b"\r\n\r\n"
_CHUNK = 65536


class Relay:
    """Listens on `address` until stopped; each connection carries one request, or one websocket."""

    def __init__(self, upstream: str, origin: str | None = None) -> None:
        self._upstream, self._origin = upstream, origin
        self._blackholes: list[threading.Event] = []
        """One per websocket; set once nothing passes any more."""
        self._stopped = threading.Event()
        relay = self

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                # Either end may reset; the other end is closed then, as after every other exit.
                with contextlib.suppress(ConnectionError):
                    relay._serve(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.address = "127.0.0.1:%d" % self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def blackhole_websockets(self) -> None:
        """Open websockets stay open, but nothing passes any more, as when a network drops their packets."""
        for blackhole in self._blackholes:
            blackhole.set()

    def set_upstream(self, upstream: str) -> None:
        """New connections go to another server."""
        self._upstream = upstream

    def stop(self) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _serve(self, client: socket.socket) -> None:
        received = b""
        while _END_OF_HEAD not in received:
            chunk = client.recv(_CHUNK)
            if not chunk:
                return
            received += chunk
        head, _, rest = received.partition(_END_OF_HEAD)
        if self._origin is not None and _HOST_CONFIG.match(head):
            client.sendall(_host_config(self._upstream, self._origin))
            return
        blackhole = threading.Event()
        if b"\r\nupgrade: websocket" in head.lower():
            self._blackholes.append(blackhole)
        else:
            # Without this, a second request on the connection would pass unexamined.
            head = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head) + b"\r\nConnection: close"
        host, port = self._upstream.split(":")
        with socket.create_connection((host, int(port))) as server:
            server.sendall(head + _END_OF_HEAD + rest)
            to_server = threading.Thread(target=self._forward, args=(client, server, blackhole), daemon=True)
            to_server.start()
            self._forward(server, client, blackhole)
            to_server.join()

    def _forward(self, source: socket.socket, sink: socket.socket, blackhole: threading.Event) -> None:
        """Forwards bytes and the end of the stream."""
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                if blackhole.is_set():
                    break
                sink.sendall(chunk)
        if blackhole.is_set():
            self._stopped.wait()
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _host_config(upstream: str, origin: str) -> bytes:
    answer = http.get(upstream, "/_stcore/host-config")
    assert answer.status == 200, f"host-config: {answer.status}"
    config = json.loads(answer.body)
    config["allowedOrigins"].append(origin)
    body = json.dumps(config).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
    return head.encode() + _END_OF_HEAD + body
