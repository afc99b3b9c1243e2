"""WebKitGTK and Chromium, driven by the classic WebDriver protocol through their drivers."""

from __future__ import annotations

import base64
import contextlib
import glob
import http.client
import itertools
import json
import os
import tempfile
from typing import Any

from support import polling
from support.network import Network
from support.process import Process
from support.tab import Tab

_SECONDS = 120.0
_PORTS = itertools.count(4444)
"""The far end has no other servers."""


class _Connection(http.client.HTTPConnection):
    """To the driver, which is at the far end."""

    def __init__(self, network: Network, port: int) -> None:
        super().__init__("127.0.0.1", port)
        self._network = network

    def connect(self) -> None:
        self.sock = self._network.connect(self.port)
        self.sock.settimeout(_SECONDS)


class ClassicBrowser:
    """Runs at the far end of the network until stopped, as a child of its driver."""

    name: str
    new = "tab"
    """What is opened for a new page. It is visible."""

    def __init__(self, network: Network, driver: list[str], capabilities: dict[str, Any], display: str = "") -> None:
        self._home = tempfile.TemporaryDirectory(prefix=f"heartbeat-sidecar-{self.name}-")
        port = next(_PORTS)
        self._connection = _Connection(network, port)
        environment = os.environ | {"HOME": self._home.name, "DISPLAY": display}
        self.process = Process(self.name, [*network.at_far_end, *driver, f"--port={port}"], environment)
        try:
            polling.wait_until(self._accepts, self.process.transcript, _SECONDS)
            wanted = {"capabilities": {"alwaysMatch": capabilities}}
            self._session = self._request("POST", "/session", wanted)["sessionId"]
            self._first = self.command("GET", "/window")
        except BaseException:
            self.stop()
            raise

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError):
            self._connection.connect()
            return True
        return False

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        self._connection.request(method, path, None if body is None else json.dumps(body))
        answer = self._connection.getresponse()
        value = json.loads(answer.read())["value"]
        assert answer.status == 200, f"{method} {path} {body}: {value}"
        return value

    def command(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Sends one command of the session and returns its result."""
        return self._request(method, f"/session/{self._session}{path}", body)

    def new_tab(self, kind: str = "") -> ClassicTab:
        """Opens a page in the foreground."""
        self.command("POST", "/window", {"handle": self._first})  # the current one may be closed
        return ClassicTab(self, self.command("POST", "/window/new", {"type": kind or self.new})["handle"])

    def stop(self) -> None:
        self._connection.close()
        self.process.stop()
        self._home.cleanup()


class WebKit(ClassicBrowser):
    """MiniBrowser, which Debian's package of the driver brings. It needs a display."""

    name = "webkitgtk"
    executable = "WebKitWebDriver"
    new = "window"  # MiniBrowser opens tabs in the background

    def __init__(self, network: Network) -> None:
        found = glob.glob("/usr/lib/*/webkit2gtk-4.*/MiniBrowser")
        assert found, "MiniBrowser is missing: it comes with Debian's package webkit2gtk-driver"
        options = {"binary": found[0], "args": ["--automation"]}
        # A display's socket is a file, so it is in reach of the browser's network namespace.
        self._display = Process("Xvfb", ["Xvfb", "-displayfd", "1", "-nolisten", "tcp"], os.environ)
        try:
            display = self._display.wait_for_line(r"^\d+$", 10)[0]
            super().__init__(network, [self.executable], {"webkitgtk:browserOptions": options}, f":{display}")
        except BaseException:
            self._display.stop()
            raise

    def stop(self) -> None:
        super().stop()
        self._display.stop()


class Chromium(ClassicBrowser):
    """For comparison with the other engines."""

    name = "chromium"
    executable = "chromedriver"

    def __init__(self, network: Network) -> None:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
        super().__init__(network, [self.executable], {"goog:chromeOptions": {"args": arguments}})


class ClassicTab(Tab):
    def __init__(self, browser: ClassicBrowser, handle: str) -> None:
        self._browser, self._handle = browser, handle

    def _command(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        # Switching does not bring the tab to the front.
        self._browser.command("POST", "/window", {"handle": self._handle})
        return self._browser.command(method, path, body)

    def goto(self, url: str) -> None:
        self._command("POST", "/url", {"url": url})

    def reload(self) -> None:
        self._command("POST", "/refresh", {})

    def back(self) -> None:
        self._command("POST", "/back", {})

    def close(self) -> None:
        self._command("DELETE", "/window")

    def call(self, function: str, *arguments: Any) -> Any:
        script = f"""
          const reply = arguments[arguments.length - 1];
          (async () => ({function})(...{json.dumps(arguments)}))().then(
            (value) => reply({{ value: value ?? null }}),
            (error) => reply({{ error: String(error) }}),
          );"""
        result = self._command("POST", "/execute/async", {"script": script, "args": []})
        assert "error" not in result, f"{function} {arguments}: {result}"
        return result["value"]

    def screenshot(self) -> bytes:
        return base64.b64decode(self._command("GET", "/screenshot"))

    def _perform(self, actions: list[dict[str, Any]]) -> None:
        self._command("POST", "/actions", {"actions": actions})
