"""A platform's page on another origin. It embeds an app and requests heartbeats, by Streamlit's own protocol."""

from __future__ import annotations

import http.server
import threading
import urllib.parse

from playwright.sync_api import Browser

from support.app_page import AppPage
from support.sidecar import Sidecar

# The protocol: the guest posts GUEST_READY; after that it accepts messages from its allowed origins.
_PAGE = b"""<!doctype html>
<title>host</title>
<style>html, body, iframe { margin: 0; border: 0; width: 100%; height: 100%; display: block; }</style>
<iframe allow="clipboard-write"></iframe>
<script>
  const app = new URL(new URLSearchParams(location.search).get("app"));
  const frame = document.querySelector("iframe");
  const host = (window.host = {
    guestReady: 0,
    posted: 0,
    heartbeat(ackTimeoutMilliseconds) {
      const message = { stCommVersion: 1, type: "SEND_APP_HEARTBEAT", ackTimeoutMilliseconds };
      frame.contentWindow.postMessage(message, app.origin);
      host.posted += 1;
    },
    /** `count` heartbeats, the first at once. */
    start(interval, ackTimeout, count) {
      const last = host.posted + count;
      const beat = () => {
        host.heartbeat(ackTimeout);
        if (host.posted >= last) host.stop();
      };
      host.timer = setInterval(beat, interval);
      beat();
    },
    stop() {
      clearInterval(host.timer);
    },
  });
  addEventListener("message", ({ source, origin, data }) => {
    if (source !== frame.contentWindow || origin !== app.origin) return;
    if (data.stCommVersion === 1 && data.type === "GUEST_READY") host.guestReady += 1;
  });
  frame.src = app;
</script>
"""


class HostServer:
    """Serves the host page on `origin`, for every path."""

    def __init__(self) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(_PAGE)))
                self.end_headers()
                self.wfile.write(_PAGE)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = "127.0.0.1:%d" % self._server.server_address[1]
        self.origin = f"http://{self.address}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class HostedPage(AppPage):
    """One tab with the host page; its frame shows the app behind `sidecar`."""

    def __init__(self, browser: Browser, sidecar: Sidecar, host: HostServer, *, relayed: bool = False) -> None:
        super().__init__(browser, sidecar, (host.address,), relayed=relayed)
        self._host = host

    def open(self, query: str = "") -> None:
        """Loads both; waits until the app accepts its host's messages and its script has finished."""
        app = f"http://{self.public_address}/{query}"
        self.page.goto(f"{self._host.origin}/?app={urllib.parse.quote(app, safe='')}")
        frame = self.page.locator("iframe").element_handle().content_frame()
        assert frame is not None, "the host page has no frame"
        self.frame = frame
        self.page.wait_for_function("host.guestReady > 0")
        self.expect_text("end of page")

    @property
    def posted(self) -> int:
        """The number of heartbeats that the host has requested."""
        return self.page.evaluate("host.posted")

    def start_heartbeats(self, count: int, *, interval: float, ack_timeout: float) -> None:
        """The host's timer paces them; both times are in seconds."""
        self.page.evaluate("(all) => host.start(...all)", [interval * 1000, ack_timeout * 1000, count])

    def stop_heartbeats(self) -> None:
        self.page.evaluate("host.stop()")

    def wait_for_posted(self, count: int) -> None:
        self.page.wait_for_function("(count) => host.posted >= count", arg=count, timeout=120_000)
