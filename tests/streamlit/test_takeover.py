"""A browser reconnects while its old connection is still open, as after a silent network failure."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Sequence

import pytest
from support import polling
from support.app_client import AppClient
from websockets.exceptions import ConnectionClosed, InvalidStatus


def reconnect(address: str, entries: Sequence[str]) -> tuple[list[str], bool]:
    """Returns the page's texts after a reconnect, and whether the old connection was closed by then."""
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
    raise AssertionError("the old connection received a message of the new one's run")


@pytest.mark.parametrize("entries", [["xsrf"], []], ids=["third-entry", "second-entry"])
def test_a_reconnect_takes_over_its_session(sidecar, entries) -> None:
    texts, closed = reconnect(sidecar.address, entries)
    assert closed, "the old connection is still open"
    if entries:  # Only Streamlit before 1.29 reads the id from the second entry.
        assert "run 2" in texts, f"the session state is lost: {texts}"
    assert sidecar.metrics().value("takeovers_total", result="closed") == 1
    assert sidecar.metrics().value("takeovers_total", result="timeout") == 0


def test_of_two_concurrent_reconnects_one_gets_the_session_and_the_other_gets_409(server, sidecar) -> None:
    with AppClient(sidecar.address, entries=["xsrf"]) as client:
        session_id = client.run().session_id

    def wait_for_count(name: str, value: int, **labels: str) -> None:
        def text() -> str:
            return f"{name}{labels} is {sidecar.metrics().value(name, **labels)}"

        polling.wait_until(lambda: sidecar.metrics().value(name, **labels) == value, text, 10)

    def reconnect() -> list[str]:
        try:
            with AppClient(sidecar.address, entries=["xsrf", session_id]) as client:
                return client.run().texts
        except InvalidStatus as rejected:
            return [str(rejected.response.status_code)]

    wait_for_count("sessions", 0)
    with ThreadPoolExecutor() as pool:
        with server.frozen():
            attempts = [pool.submit(reconnect) for _ in range(2)]
            wait_for_count("handshakes_total", 1, result="superseded")
        texts = [attempt.result() for attempt in attempts]
    assert ["409"] in texts
    assert any("run 2" in text for text in texts), f"the session state is lost: {texts}"


def test_without_takeover_old_connections_stay_open_and_1_21_to_1_60_lose_the_session(start_sidecar, version) -> None:
    sidecar = start_sidecar("--session-takeover", "false")
    texts, closed = reconnect(sidecar.address, ["xsrf"])
    assert not closed
    assert ("run 2" if version.keeps_sessions else "run 1") in texts
    assert sidecar.metrics().value("takeovers_total", result="closed") == 0


def test_an_unknown_session_id_closes_no_connection(sidecar) -> None:
    with AppClient(sidecar.address, entries=["xsrf"]) as old:
        old.run()
        with AppClient(sidecar.address, entries=["xsrf", "00000000-0000-4000-8000-000000000000"]) as stranger:
            stranger.run()
        assert "run 2" in old.run().texts
    assert sidecar.metrics().value("takeovers_total", result="closed") == 0
