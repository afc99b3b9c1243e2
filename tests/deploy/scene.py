"""A sidecar of a real Streamlit, pages that send heartbeats, and a real Prometheus that evaluates the shipped rules.

Invariant: the rules are the shipped ones, with each minute shortened to a second.
"""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote

from support import http, polling
from support.process import Process
from support.sidecar import Sidecar, binary
from support.streamlit_server import StreamlitServer
from tools import DEPLOY

_CONFIGURATION = """
global: {{scrape_interval: 500ms, evaluation_interval: 500ms, scrape_timeout: 400ms}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: heartbeat-sidecar
    static_configs: [{{targets: ["{admin}"]}}]
"""


def minutes_as_seconds(rules: str) -> str:
    """Shortens durations after `[` and `for:`. Those in annotations stay."""

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{int(found[2]) * (60 if found[3] == 'h' else 1)}s"

    return re.sub(r"(\[|for: )(\d+)([mh])", shorter, rules)


class Scene:
    """Runs until stopped."""

    def __init__(self, app: StreamlitServer, directory: Path) -> None:
        self.app = app
        # As short as the rules' minutes: a stall counts after 1 s.
        deadlines = {"HEARTBEAT_NATIVE_DEADLINE": "500ms", "HEARTBEAT_STALL_AFTER": "1s", "HANDSHAKE_TIMEOUT": "1s"}
        self.sidecar = Sidecar(app.address, LOG_LEVEL="info,heartbeat_sidecar::relay=warn", **deadlines)
        self._processes: list[Process] = []
        try:
            self._start_prometheus(directory)
            self._start_pages()
            rate = "rate(heartbeat_sidecar_heartbeats_total[5s])"
            self.wait_until(lambda: self.value(rate) > 5, "no traffic")
        except BaseException:
            self.stop()
            raise

    def _start_prometheus(self, directory: Path) -> None:
        rules = (DEPLOY / "prometheus" / "rules.yml").read_text()
        (directory / "rules.yml").write_text(minutes_as_seconds(rules))
        (directory / "prometheus.yml").write_text(_CONFIGURATION.format(admin=self.sidecar.admin))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._prometheus = f"127.0.0.1:{probe.getsockname()[1]}"
        arguments = [
            "prometheus",
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={self._prometheus}",
        ]
        self._processes.append(Process("prometheus", arguments, os.environ))
        self._processes[-1].wait_for_line("Server is ready to receive web requests", 30)

    def _start_pages(self) -> None:
        """Starts three long-lived pages and four loops of short-lived ones: enough traffic for the alerts."""
        url = f"http://{self.sidecar.address}/"
        probe = f"{binary()} probe {url} --interval 100ms"
        # The short-lived pages wait longer than the sidecar, because it does not count handshakes that a client aborts.
        long, short = f"{probe} --timeout 200ms --count 1000000", f"{probe} --timeout 3s --count 5; sleep 0.2"
        for command in [long] * 3 + [short] * 4:
            loop = f"while :; do {command}; done"
            self._processes.append(Process("page", ["bash", "-c", loop], os.environ))

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Returns the samples of an instant query, which must be valid."""
        answer = http.get(self._prometheus, f"/api/v1/query?query={quote(expression, safe='')}")
        response = json.loads(answer.body)
        assert response["status"] == "success", f"{expression}: {response}"
        return response["data"]["result"]

    def value(self, expression: str) -> float:
        """Returns the value of a query with one sample, 0 without a sample."""
        return sum(float(sample["value"][1]) for sample in self.query(expression))

    def firing(self) -> set[str]:
        alerts = json.loads(http.get(self._prometheus, "/api/v1/alerts").body)["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def wait_until(self, reached: Callable[[], bool], message: str, seconds: float = 40.0) -> None:
        polling.wait_until(reached, lambda: f"{message}; firing: {self.firing()}", seconds)

    def stop(self) -> None:
        for process in self._processes:
            process.stop()
        self.sidecar.stop()
