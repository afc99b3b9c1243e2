"""A server of pages and websockets that records what a browser does."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time

from support import polling
from websockets.sync.server import ServerConnection, serve

_PAGE = b"<!doctype html><title>probe</title><body>probe"
_SLOW_SECONDS = 1.0


class ProbeServer:
    """Serves pages on one port with kept connections, and websockets on another, until stopped."""

    def __init__(self) -> None:
        probe = self
        self.accepted = 0
        """TCP connections for HTTP."""
        self.handshakes = 0
        self._messages: list[list[str]] = []
        self._sockets: list[ServerConnection] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                probe.accepted += 1
                super().setup()

            def do_GET(self) -> None:
                if "slow" in self.path:
                    time.sleep(_SLOW_SECONDS)
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(_PAGE)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(_PAGE)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._websockets = serve(
            self._serve, "127.0.0.1", 0, process_request=self._count, ping_interval=None, close_timeout=1
        )
        for server in (self._http, self._websockets):
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def _count(self, _: ServerConnection, request) -> None:
        self.handshakes += 1
        if "slow" in request.path:
            time.sleep(10 * _SLOW_SECONDS)

    def _serve(self, socket: ServerConnection) -> None:
        number = len(self._sockets)
        self._sockets.append(socket)
        self._messages.append([])
        for message in socket:
            self._messages[number].append(str(message))

    def page(self, host: str, name: str = "") -> str:
        return f"http://{host}:{self._http.server_address[1]}/{name}"

    def websocket(self, host: str, name: str = "") -> str:
        return f"ws://{host}:{self._websockets.socket.getsockname()[1]}/{name}"

    def messages(self, number: int) -> list[str]:
        """What arrived on that websocket."""
        return self._messages[number]

    def wait_for_end(self, number: int, seconds: float) -> int | None:
        """The close code that the browser sent on that websocket, or 1006; `None` if it is still open."""
        with contextlib.suppress(AssertionError):
            polling.wait_until(lambda: self._sockets[number].close_code is not None, lambda: "", seconds)
        return self._sockets[number].close_code

    def stop(self) -> None:
        self._websockets.shutdown()
        self._http.shutdown()
        self._http.server_close()
