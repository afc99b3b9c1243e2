"""A relay before an app server or a sidecar: adds an origin to those that its page obeys, or lets websockets go dead.

Streamlit before 1.55 has the list of those origins hard-coded; platforms answer `_stcore/host-config` themselves.
Law: whatever else passes is passed as it came.
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
        self._dead: list[threading.Event] = []
        """One a websocket, set once it is dead."""
        self._stopped = threading.Event()
        relay = self

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                # Either end may reset: the other is then closed, as it is on every other way out.
                with contextlib.suppress(ConnectionError):
                    relay._serve(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.address = "127.0.0.1:%d" % self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def let_websockets_die(self) -> None:
        """Those that are open stay so, but nothing passes any more, as when a network drops their packets."""
        for dead in self._dead:
            dead.set()

    def lead_to(self, upstream: str) -> None:
        """Connections that come from now on are for another server."""
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
        dead = threading.Event()
        if b"\r\nupgrade: websocket" in head.lower():
            self._dead.append(dead)
        else:
            # A second request on the connection would pass unseen.
            head = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head) + b"\r\nConnection: close"
        host, port = self._upstream.split(":")
        with socket.create_connection((host, int(port))) as server:
            server.sendall(head + _END_OF_HEAD + rest)
            upward = threading.Thread(target=self._pour, args=(client, server, dead), daemon=True)
            upward.start()
            self._pour(server, client, dead)
            upward.join()

    def _pour(self, source: socket.socket, sink: socket.socket, dead: threading.Event) -> None:
        """Passes bytes on as they come, and the end of them too."""
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                if dead.is_set():
                    break
                sink.sendall(chunk)
        if dead.is_set():
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
