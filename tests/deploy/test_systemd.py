"""The unit: systemd has nothing to say against it, and it is shut as tight as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sidecar import binary
from tools import DEPLOY, output

INSTALLED = "/usr/local/bin/heartbeat-sidecar"


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """As installed, but that the program is where it was built."""
    found = sorted((DEPLOY / "systemd").iterdir())
    assert [unit.name for unit in found] == ["heartbeat-sidecar.service", "heartbeat-sidecar.socket"]
    for unit in found:
        (tmp_path / unit.name).write_text(unit.read_text().replace(INSTALLED, str(binary())))
    return [tmp_path / unit.name for unit in found]


def test_systemd_has_nothing_to_say(units: list[Path]) -> None:
    assert str(binary()) in units[0].read_text()
    assert output("systemd-analyze", "verify", *units) == ""


def test_it_is_exposed_at_1_5_of_10_at_most(units: list[Path]) -> None:
    said = output("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=15", units[0])
    assert "Overall exposure level" in said
