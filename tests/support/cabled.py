"""Fixtures of the simulated network: one a run, whole again after each test."""

from __future__ import annotations

from typing import Iterator

import pytest

from support.network import Network


@pytest.fixture(scope="session")
def cable() -> Iterator[Network]:
    network = Network()
    yield network
    network.stop()


@pytest.fixture
def network(cable: Network) -> Iterator[Network]:
    yield cable
    cable.reset()
