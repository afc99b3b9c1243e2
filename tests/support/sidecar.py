"""`heartbeat-sidecar run` in front of an upstream, on free ports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

from support import http, polling
from support.certificate import Certificate
from support.metrics import Metrics
from support.process import Process

REPOSITORY = Path(__file__).resolve().parent.parent.parent
_READY_SECONDS = 20.0


def binary() -> Path:
    """The executable under test: HEARTBEAT_SIDECAR_TEST_BINARY, else the release build."""
    path = Path(os.environ.get("HEARTBEAT_SIDECAR_TEST_BINARY", REPOSITORY / "target/release/heartbeat-sidecar"))
    assert path.is_file(), f"{path} is not there: run `cargo build --release` first"
    return path


class NoSidecar:
    """Stands in for a sidecar if the browser connects to the app server directly."""

    scheme = "http"

    def __init__(self, upstream: str) -> None:
        self.address = upstream
        self.log: list[str] = []

    def stop(self) -> None:
        """Does nothing: no process was started."""


class Sidecar:
    """A running sidecar. `settings` are environment variables without their HEARTBEAT_SIDECAR_ prefix."""

    command: tuple[str, ...] = ()
    """A prefix for its command line."""
    host = "127.0.0.1"
    """The address on which it listens."""
    scheme = "http"

    def __init__(self, upstream: str | None, *arguments: str, **settings: str) -> None:
        """Without `upstream`, the arguments must configure the apps."""
        # The caller's HEARTBEAT_SIDECAR_ variables must not change a test.
        env = {name: value for name, value in os.environ.items() if not name.startswith("HEARTBEAT_SIDECAR_")}
        self._env = env | {f"HEARTBEAT_SIDECAR_{name}": value for name, value in settings.items()}
        only = ["--upstream", f"http://{upstream}"] if upstream else []
        self._arguments = [*only, "--log-format", "text", *arguments]
        self._start(f"{self.host}:0")

    def _start(self, listen: str) -> None:
        ports = ["--listen", listen, "--admin", f"{self.host}:0"]
        arguments = [*self.command, str(binary()), "run", *ports, *self._arguments]
        self.process = Process("heartbeat-sidecar", arguments, self._env)
        try:
            self.address = self.process.wait_for_line(r"listening on ([\d.]+:\d+)", _READY_SECONDS)[1]
            self.admin = self.process.wait_for_line(r"admin on ([\d.]+:\d+)", _READY_SECONDS)[1]
        except BaseException:
            self.process.stop()
            raise

    @classmethod
    def encrypted(cls, certificate: Certificate, upstream: str, *arguments: str) -> Sidecar:
        """A sidecar that serves TLS."""
        files = {"TLS_CERTIFICATE": str(certificate.certificate), "TLS_KEY": str(certificate.key)}
        sidecar = cls(upstream, *arguments, **files)
        sidecar.scheme = "https"
        return sidecar

    def restart(self) -> None:
        """Starts a new process at the same address, without the state of the first one."""
        self.process.stop()
        self._start(self.address)

    @property
    def log(self) -> list[str]:
        return self.process.lines

    def metrics_text(self) -> str:
        answer = http.get(self.admin, "/metrics")
        assert answer.status == 200, f"/metrics answered {answer.status}: {answer.body[:200]!r}"
        return answer.body.decode()

    def metrics(self) -> Metrics:
        return Metrics.parse(self.metrics_text())

    def wait_for_metrics(self, reached: Callable[[Metrics], bool], seconds: float = 20.0) -> Metrics:
        """Polls the metrics; returns the first scrape that satisfies `reached`."""
        seen: list[Metrics] = []

        def is_reached() -> bool:
            seen[:] = [self.metrics()]
            return reached(seen[0])

        def message() -> str:
            return f"{self.process.transcript()}\n{self.metrics_text()}\nthe metrics are not as expected"

        polling.wait_until(is_reached, message, seconds)
        return seen[0]

    def stop(self) -> None:
        self.process.stop()
