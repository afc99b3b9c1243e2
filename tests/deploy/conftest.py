"""The fixtures for checking `deploy/`: the tools, and a real Prometheus that scrapes a sidecar of a real Streamlit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

import pytest
from scene import Scene
from support.streamlit_server import StreamlitServer
from tools import Bundled


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Bundled:
    return Bundled(tmp_path_factory.mktemp("bundled"))


@pytest.fixture(scope="session")
def app() -> Iterator[StreamlitServer]:
    cache = os.environ.get("HEARTBEAT_SIDECAR_TEST_CACHE")
    assert cache, "HEARTBEAT_SIDECAR_TEST_CACHE is not set: start these tests with `tests/run`"
    version = os.environ.get("HEARTBEAT_SIDECAR_TEST_DEPLOY", "1.40.0")
    running = StreamlitServer(Path(cache) / f"streamlit-{version}" / "bin" / "python")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def scene(app: StreamlitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    running = Scene(app, tmp_path_factory.mktemp("prometheus"))
    yield running
    running.stop()
