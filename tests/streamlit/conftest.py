"""The version under test is the installed one; its server lives as long as the run, a sidecar as long as its test."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

import pytest
import streamlit
from support import known
from support.sidecar import Sidecar
from support.streamlit_server import StreamlitServer

StartSidecar = Callable[..., Sidecar]


@dataclass(frozen=True)
class Version:
    """What is true of a Streamlit version, as far as heartbeats go."""

    name: str

    @property
    def acks_natively(self) -> bool:
        major, minor = self.name.split(".")[:2]
        return (int(major), int(minor)) >= (1, 55)

    @property
    def ack(self) -> bytes:
        return known.PLAIN_ACK if self.acks_natively else known.COMPATIBLE_ACK

    @property
    def origin(self) -> str:
        return "upstream" if self.acks_natively else "sidecar"

    @property
    def other_origin(self) -> str:
        return "sidecar" if self.acks_natively else "upstream"


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
