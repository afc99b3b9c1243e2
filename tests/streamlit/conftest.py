"""The installed Streamlit is the version under test. One server per run, one sidecar per test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Callable, Iterator

import pytest
import streamlit
from support.sidecar import Sidecar
from support.streamlit_server import StreamlitServer
from support.version import Version

StartSidecar = Callable[..., Sidecar]


@pytest.fixture(scope="session")
def version() -> Version:
    return Version(streamlit.__version__)


@pytest.fixture(scope="session")
def server() -> Iterator[StreamlitServer]:
    running = StreamlitServer(Path(sys.executable))
    yield running
    running.stop()


@pytest.fixture
def start_sidecar(server: StreamlitServer) -> Iterator[StartSidecar]:
    started: list[Sidecar] = []

    def start(*arguments: str, **settings: str) -> Sidecar:
        started.append(Sidecar(server.address, *arguments, **settings))
        return started[-1]

    yield start
    for sidecar in started:
        sidecar.stop()


@pytest.fixture
def sidecar(start_sidecar: StartSidecar) -> Sidecar:
    return start_sidecar()
