"""A real Streamlit server of a given environment, on a free port. It can be frozen."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Iterator, Mapping

from support import http
from support.process import Process

APP = Path(__file__).resolve().parent.parent / "streamlit" / "app.py"
_START_SECONDS = 90.0
_ATTEMPTS = 3


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class StreamlitServer:
    """Runs an app with the `streamlit` of `python`. It serves once the constructor returns."""

    def __init__(self, python: Path, app: Path = APP, options: Mapping[str, str] | None = None) -> None:
        # Its own home and working directory, so that no ~/.streamlit/config.toml applies.
        self._home = tempfile.TemporaryDirectory(prefix="heartbeat-sidecar-streamlit-")
        self.python, self._app, self._options = python, app, dict(options or {})
        self._base = self._options.get("server.baseUrlPath", "")
        # Streamlit cannot bind port 0, so another process may take the port first. Then another port is tried.
        for attempt in range(1, _ATTEMPTS + 1):
            self.address = f"127.0.0.1:{_free_port()}"
            self.process = self._start()
            if self._healthy():
                return
            self.process.stop()
            if attempt == _ATTEMPTS or not any("already in use" in line for line in self.process.lines):
                self._home.cleanup()
                raise AssertionError(f"Streamlit did not start on {self.address}; {self.process.transcript()}")

    def _start(self) -> Process:
        host, port = self.address.split(":")
        options = {
            "server.headless": "true",
            "server.address": host,
            "server.port": port,
            "server.fileWatcherType": "none",
            "browser.gatherUsageStats": "false",
            **self._options,
        }
        arguments = [str(self.python), "-m", "streamlit", "run", str(self._app)]
        arguments += [word for name, value in options.items() for word in (f"--{name}", value)]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMLIT_", "PYTHON"))}
        env |= {"HOME": self._home.name, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return Process("streamlit", arguments, env, cwd=Path(self._home.name))

    def _healthy(self) -> bool:
        """Polls the health page, the only sign of readiness that every version has."""
        deadline = time.monotonic() + _START_SECONDS
        while self.process.running and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if http.get(self.address, f"{self._base}/_stcore/health").status == 200:
                    return True
            time.sleep(0.05)
        return False

    @property
    def directory(self) -> Path:
        """The app's working directory, empty at the start."""
        return Path(self._home.name)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stops the server's process inside the block. The kernel still accepts bytes for it."""
        self.process.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.stop()
        self._home.cleanup()
