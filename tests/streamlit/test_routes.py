"""Two apps behind one sidecar, with different base paths. Each keeps its own sessions and heartbeats after a reload."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator

import pytest
from support import http
from support.app_client import AppClient
from support.sidecar import Sidecar
from support.streamlit_server import StreamlitServer

BASE = "/forecast"


@pytest.fixture(scope="module")
def other() -> Iterator[StreamlitServer]:
    """A second app server, below a base path."""
    running = StreamlitServer(Path(sys.executable), options={"server.baseUrlPath": BASE})
    yield running
    running.stop()


def route(name: str, path: str, server: StreamlitServer, mode: str = "auto") -> str:
    lines = ["[[route]]", f'name = "{name}"', f'path = "{path}"', f'upstream = "http://{server.address}"']
    return "\n".join([*lines, f'heartbeat.mode = "{mode}"', ""])


def test_two_apps_behind_one_sidecar_stay_separate(server, other, version, tmp_path) -> None:
    config = tmp_path / "sidecar.toml"
    config.write_text(route("main", "/", server) + route("forecast", BASE, other))
    sidecar = Sidecar(None, "--config", str(config))
    try:
        for base, name, app in (("", "main", server), (BASE, "forecast", other)):
            assert http.get(sidecar.address, f"{base}/").body == http.get(app.address, f"{base}/").body
            with AppClient(sidecar.address, base=base) as client:
                client.run()
                client.heartbeat()
                assert client.ack() == version.ack
            metrics = sidecar.metrics()
            assert metrics.value("heartbeats_total", upstream=name) == 1
            assert metrics.value("acks_total", upstream=name, origin=version.origin) == 1

        with AppClient(sidecar.address, base=BASE) as client:
            client.run()
            # The route is removed; its live session goes on.
            config.write_text(route("main", "/", server, mode="forward"))
            sidecar.wait_for_metrics(lambda metrics: metrics.value("config_reloads_total", result="accepted") == 1)
            client.heartbeat()
            assert client.ack() == version.ack
            client.run()
            health = f"{BASE}/_stcore/health"
            assert http.get(sidecar.address, health).body != http.get(other.address, health).body
    finally:
        sidecar.stop()
