"""The test app in a real browser, with a hand on the websocket that the page has opened."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, Locator, Route, expect

from support import known
from support.sidecar import Sidecar

_SECONDS = 30
_MILLISECONDS = _SECONDS * 1000

# Keeps the page's stream socket and notes the small messages; the page's own script reads them all the same.
_WATCH_THE_STREAM = """
(() => {
  const Native = window.WebSocket;
  window.watched = { stream: null, received: [] };
  window.WebSocket = class extends Native {
    constructor(url, protocols) {
      super(url, protocols);
      if (!String(url).includes("/_stcore/stream")) return;
      window.watched.stream = this;
      this.addEventListener("message", async ({ data }) => {
        const bytes = new Uint8Array(data instanceof Blob ? await data.arrayBuffer() : data);
        if (bytes.length > 16) return;
        window.watched.received.push(Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(""));
      });
    }
  };
})();
"""


class AppPage:
    """One tab with the app behind `sidecar`, which it owns."""

    def __init__(self, browser: Browser, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self.console: list[str] = []
        self._context = browser.new_context(accept_downloads=True)
        self._context.route(lambda url: not url.startswith(f"http://{sidecar.address}/"), self._refuse)
        self.page = self._context.new_page()
        self.page.set_default_timeout(_MILLISECONDS)
        self.page.add_init_script(_WATCH_THE_STREAM)
        self.page.on("pageerror", lambda error: self.console.append(f"uncaught: {error}"))
        self.page.on("console", lambda line: self.console.append(f"{line.type}: {line.text}"))

    @staticmethod
    def _refuse(route: Route) -> None:
        """The world outside has no part in the tests."""
        route.abort()

    def open(self) -> None:
        """Loads the app and waits until its script has come to its end."""
        self.page.goto(f"http://{self.sidecar.address}/")
        self.expect_text("end of page")

    @property
    def errors(self) -> list[str]:
        """Console errors of the page's scripts; a resource that did not load is another matter."""
        errors = [line for line in self.console if line.startswith(("error:", "uncaught:"))]
        return [line for line in errors if "Failed to load resource" not in line]

    @property
    def dialogs(self) -> Locator:
        return self.page.get_by_role("dialog")

    def expect_text(self, text: str) -> None:
        expect(self.page.get_by_text(text, exact=True)).to_be_visible(timeout=_MILLISECONDS)

    def move_slider(self, label: str, key: str = "ArrowRight") -> None:
        self.page.get_by_test_id("stSlider").filter(has_text=label).get_by_role("slider").press(key)

    @property
    def acks(self) -> list[bytes]:
        """The acks that have come so far, in order."""
        received = [bytes.fromhex(data) for data in self.page.evaluate("window.watched.received")]
        return [data for data in received if data in known.ACKS]

    def heartbeat(self) -> bytes:
        """Sends a heartbeat from within the page and returns the ack that it got."""
        before = len(self.acks)
        self.page.evaluate("(bytes) => window.watched.stream.send(new Uint8Array(bytes))", list(known.HEARTBEAT))
        self.page.wait_for_function(
            "([acks, count]) => window.watched.received.filter((data) => acks.includes(data)).length > count",
            arg=[[ack.hex() for ack in known.ACKS], before],
        )
        return self.acks[before]

    def save_evidence(self, stem: Path) -> None:
        """Screenshot, console and the sidecar's log, next to each other."""
        self.page.screenshot(path=f"{stem}.png", full_page=True)
        notes = [*self.console, "", *self.sidecar.process.lines]
        Path(f"{stem}.txt").write_text("\n".join(notes) + "\n")

    def close(self) -> None:
        self._context.close()
        self.sidecar.stop()
