"""A browser that comes back while its old connection is still open, as after a network that died in silence."""

from __future__ import annotations

from typing import Sequence

import pytest
from support.app_client import AppClient
from websockets.exceptions import ConnectionClosed

# Servers of these versions start an empty session while the old connection is open; 1.61 mended that.
FORGETFUL = ((1, 21), (1, 60))


def forgets(version: str) -> bool:
    major, minor = version.split(".")[:2]
    return FORGETFUL[0] <= (int(major), int(minor)) <= FORGETFUL[1]


def reconnect(address: str, entries: Sequence[str]) -> tuple[list[str], bool]:
    """The texts of the page after a reconnect, and whether the old connection was closed by then."""
    with AppClient(address, entries=entries) as old:
        first = old.run()
        assert "run 1" in first.texts
        with AppClient(address, entries=[*entries, first.session_id]) as new:
            texts = new.run().texts
            try:
                old.receive(0)
            except ConnectionClosed as closed:
                assert closed.rcvd is not None and closed.rcvd.code == 1001
                return texts, True
            except TimeoutError:
                return texts, False
    raise AssertionError("the old connection got a message of the new one's run")


@pytest.mark.parametrize("entries", [["xsrf"], []], ids=["third-entry", "second-entry"])
def test_a_reconnect_takes_its_session_over(sidecar, entries) -> None:
    texts, closed = reconnect(sidecar.address, entries)
    assert closed, "the old connection is still open"
    if entries:  # Only Streamlit before 1.29 looks for the id in the second entry.
        assert "run 2" in texts, f"the session state is gone: {texts}"
    assert sidecar.metrics().value("takeovers_total", result="closed") == 1
    assert sidecar.metrics().value("takeovers_total", result="timeout") == 0


def test_without_takeover_the_server_decides(start_sidecar, version) -> None:
    sidecar = start_sidecar("--session-takeover", "false")
    texts, closed = reconnect(sidecar.address, ["xsrf"])
    assert not closed
    assert ("run 1" if forgets(version.name) else "run 2") in texts
    assert sidecar.metrics().value("takeovers_total", result="closed") == 0


def test_an_unknown_id_closes_nobody(sidecar) -> None:
    with AppClient(sidecar.address, entries=["xsrf"]) as old:
        old.run()
        with AppClient(sidecar.address, entries=["xsrf", "00000000-0000-4000-8000-000000000000"]) as stranger:
            stranger.run()
        assert "run 2" in old.run().texts
    assert sidecar.metrics().value("takeovers_total", result="closed") == 0
