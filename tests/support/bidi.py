"""Firefox, driven by WebDriver BiDi, which it speaks itself."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import tempfile
from typing import Any

from websockets.sync.client import connect

from support.network import Network
from support.process import Process
from support.tab import Tab

_SECONDS = 120.0


class Firefox:
    """Runs at the far end of the network until stopped."""

    name = "firefox"
    executable = "firefox-esr"

    def __init__(self, network: Network) -> None:
        self._open = contextlib.ExitStack()
        home = self._open.enter_context(tempfile.TemporaryDirectory(prefix="heartbeat-sidecar-firefox-"))
        command = [self.executable, "--headless", "--no-remote", "--profile", home, "--remote-debugging-port=0"]
        self.process = Process(self.name, [*network.at_far_end, *command], os.environ | {"HOME": home})
        try:
            port = int(self.process.wait_for_line(r"BiDi listening on ws://127.0.0.1:(\d+)", _SECONDS)[1])
            options = {"sock": network.connect(port), "compression": None, "ping_interval": None, "max_size": None}
            self._socket = self._open.enter_context(connect(f"ws://127.0.0.1:{port}/session", **options))
            self._last = 0
            self.command("session.new", capabilities={})
        except BaseException:
            self.stop()
            raise

    def command(self, method: str, **parameters: Any) -> Any:
        """Sends one command and returns its result."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=_SECONDS))
            if message.get("id") == self._last:
                assert message["type"] == "success", f"{method} {parameters}: {message}"
                return message["result"]

    def new_tab(self) -> BidiTab:
        """Opens a tab in the foreground."""
        return BidiTab(self, self.command("browsingContext.create", type="tab")["context"])

    def stop(self) -> None:
        self.process.stop()
        self._open.close()


class BidiTab(Tab):
    def __init__(self, browser: Firefox, context: str) -> None:
        self._browser, self._context = browser, context

    def _command(self, method: str, **parameters: Any) -> Any:
        return self._browser.command(method, context=self._context, **parameters)

    def goto(self, url: str) -> None:
        self._command("browsingContext.navigate", url=url, wait="complete")

    def reload(self) -> None:
        self._command("browsingContext.reload", wait="complete")

    def back(self) -> None:
        self._command("browsingContext.traverseHistory", delta=-1)

    def close(self) -> None:
        self._command("browsingContext.close")

    def call(self, function: str, *arguments: Any) -> Any:
        # The protocol has its own types of values; one string of JSON is the same in both protocols.
        result = self._browser.command(
            "script.callFunction",
            functionDeclaration=f"async () => JSON.stringify(await ({function})(...{json.dumps(arguments)})) ?? 'null'",
            awaitPromise=True,
            target={"context": self._context},
            userActivation=True,
        )
        assert result["type"] == "success", f"{function} {arguments}: {result}"
        return json.loads(result["result"]["value"])

    def screenshot(self) -> bytes:
        return base64.b64decode(self._command("browsingContext.captureScreenshot")["data"])

    def _perform(self, actions: list[dict[str, Any]]) -> None:
        self._command("input.performActions", actions=actions)
