"""The units pass systemd's verification, and their exposure level has not increased."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sidecar import binary
from tools import DEPLOY, output

INSTALLED = "/usr/local/bin/heartbeat-sidecar"


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units as installed, with the path of the built program."""
    found = sorted((DEPLOY / "systemd").iterdir())
    assert [unit.name for unit in found] == ["heartbeat-sidecar.service", "heartbeat-sidecar.socket"]
    for unit in found:
        (tmp_path / unit.name).write_text(unit.read_text().replace(INSTALLED, str(binary())))
    return [tmp_path / unit.name for unit in found]


def test_systemd_analyze_verify_reports_nothing(units: list[Path]) -> None:
    assert str(binary()) in units[0].read_text()
    assert output("systemd-analyze", "verify", *units) == ""


def test_the_exposure_level_is_at_most_1_5_of_10(units: list[Path]) -> None:
    printed = output("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=15", units[0])
    assert "Overall exposure level" in printed
