"""A browser that comes back while its old connection is still open, as after a network that died in silence."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Sequence

import pytest
from support import polling
from support.app_client import AppClient
from websockets.exceptions import ConnectionClosed, InvalidStatus

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


def test_of_two_reconnects_side_by_side_one_gets_the_session_and_the_other_is_refused(server, sidecar) -> None:
    with AppClient(sidecar.address, entries=["xsrf"]) as client:
        session_id = client.run().session_id

    def count(name: str, value: int, **labels: str) -> None:
        def text() -> str:
            return f"{name}{labels} is {sidecar.metrics().value(name, **labels)}"

        polling.wait_until(lambda: sidecar.metrics().value(name, **labels) == value, text, 10)

    def reconnect() -> list[str]:
        try:
            with AppClient(sidecar.address, entries=["xsrf", session_id]) as client:
                return client.run().texts
        except InvalidStatus as refused:
            return [str(refused.response.status_code)]

    count("connections", 0)
    with ThreadPoolExecutor() as pool:
        with server.frozen():
            attempts = [pool.submit(reconnect) for _ in range(2)]
            count("handshakes_total", 1, result="superseded")
        texts = [attempt.result() for attempt in attempts]
    assert ["409"] in texts
    assert any("run 2" in text for text in texts), f"the session state is gone: {texts}"


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
