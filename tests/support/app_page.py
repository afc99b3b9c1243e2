"""The test app in a real browser, with access to the page's websocket."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Protocol

from playwright.sync_api import Browser, Frame, Locator, Response, Route, expect

from support import known, status_watch, stream_watch
from support.relay import Relay
from support.sidecar import REPOSITORY, Sidecar
from support.stream_watch import Stream

_ARTIFACTS = REPOSITORY / "target" / "test-artifacts"
_SECONDS = 30
_MILLISECONDS = _SECONDS * 1000


class Front(Protocol):
    """A proxy between the browser and the sidecar."""

    address: str

    def stop(self) -> None: ...


class AppPage:
    """One tab with the app behind `sidecar`. Closing it stops the sidecar."""

    frame: Frame
    """The frame in which the app runs."""

    def __init__(
        self,
        browser: Browser,
        sidecar: Sidecar,
        other_addresses: tuple[str, ...] = (),
        *,
        relayed: bool = False,
        front: Front | None = None,
    ) -> None:
        """With `relayed` a relay stands in front of the sidecar; it can blackhole the page's websocket.

        `front` is anything else in front of the sidecar; closing the page stops it.
        """
        self.sidecar = sidecar
        self.relay = Relay(sidecar.address) if relayed else None
        self.front = front or self.relay
        self.public_address = self.front.address if self.front else sidecar.address
        self.console: list[str] = []
        self._failed: list[Response] = []
        self._context = browser.new_context(accept_downloads=True)
        self._address = f"{sidecar.scheme}://{self.public_address}/"
        allowed = (self._address, *(f"http://{address}/" for address in other_addresses))
        self._context.route(lambda url: not url.startswith(allowed), self._block)
        self.page = self._context.new_page()
        self.page.set_default_timeout(_MILLISECONDS)
        self.page.add_init_script(stream_watch.SCRIPT)
        self.page.add_init_script(status_watch.SCRIPT)
        self.frame = self.page.main_frame
        self.page.on("pageerror", lambda error: self.console.append(f"uncaught: {error}"))
        self.page.on("response", lambda response: self._failed.append(response) if response.status >= 400 else None)
        self.page.on("console", lambda line: self.console.append(f"{line.type}: {line.text}"))

    @staticmethod
    def _block(route: Route) -> None:
        """Blocks every request to the internet."""
        route.abort()

    def open(self, query: str = "") -> None:
        """Loads the app and waits until its script has finished."""
        self.page.goto(self._address + query)
        self.expect_text("end of page")

    @property
    def errors(self) -> list[str]:
        """Console errors of the page's scripts, without resources that failed to load."""
        errors = [line for line in self.console if line.startswith(("error:", "uncaught:"))]
        return [line for line in errors if "Failed to load resource" not in line]

    @property
    def dialogs(self) -> Locator:
        return self.frame.get_by_role("dialog")

    def expect_text(self, text: str) -> None:
        expect(self.frame.get_by_text(text, exact=True)).to_be_visible(timeout=_MILLISECONDS)

    def check_upload_and_download(self, content: bytes) -> None:
        """Uploads `content`, downloads the app's file, and compares both byte for byte."""
        self.page.locator("input[type=file]").set_input_files(
            {"name": "random.bin", "mimeType": "application/octet-stream", "buffer": content}
        )
        self.expect_text(f"upload random.bin {len(content)} {hashlib.sha256(content).hexdigest()}")
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name="Download", exact=True).click()
        assert download.value.suggested_filename == "known.bin"
        assert Path(download.value.path()).read_bytes() == known.DOWNLOAD

    def expect_connected(self) -> None:
        """Waits until the newest socket is open and the page no longer shows "Connecting"."""
        stream_watch.wait_until_open(self.frame)
        connecting = self.frame.get_by_test_id("stStatusWidget").filter(has_text="Connecting")
        expect(connecting).to_have_count(0, timeout=_MILLISECONDS)

    def move_slider(self, label: str, key: str = "ArrowRight") -> int:
        """Returns the slider's new value, or the old one if the page shows that it is not connected."""
        slider = self.frame.locator(".stSlider").filter(has_text=label).get_by_role("slider")
        slider.press(key)
        return int(slider.evaluate("(slider) => slider.ariaValueNow ?? slider.value"))

    @property
    def stream(self) -> Stream:
        """The recorded activity of the page's stream socket."""
        return Stream.of(self.frame)

    @property
    def acks(self) -> list[bytes]:
        """The acks received so far, in order."""
        return [ack.data for ack in self.stream.acks]

    def heartbeat(self) -> bytes:
        """Sends a heartbeat from within the page and returns its ack."""
        before = len(self.acks)
        stream_watch.send_heartbeat(self.frame)
        stream_watch.wait_for_acks(self.frame, before + 1)
        return self.acks[before]

    def save_evidence(self, name: str) -> None:
        """Saves screenshot, console, failed requests and the sidecar's log under the test's name."""
        _ARTIFACTS.mkdir(parents=True, exist_ok=True)
        stem = _ARTIFACTS / re.sub(r"[^\w.-]+", "-", name).strip("-")
        self.page.screenshot(path=f"{stem}.png", full_page=True)
        failed = [f"{it.status} {it.request.method} {it.url} {it.request.all_headers()}" for it in self._failed]
        notes = [*self.console, "", *failed, "", *self.sidecar.log]
        Path(f"{stem}.txt").write_text("\n".join(notes) + "\n")

    def close(self) -> None:
        self._context.close()
        if self.front:
            self.front.stop()
        self.sidecar.stop()
