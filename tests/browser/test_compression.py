"""A page whose websocket is compressed takes the sidecar's acks between its messages without ever losing the thread."""

from __future__ import annotations

from typing import Iterator

import pytest
from conftest import NEW, OLD, environment
from playwright.sync_api import expect
from support import known
from support.streamlit_server import StreamlitServer

HEARTBEATS = 30


@pytest.fixture(scope="module", params=[OLD, NEW])
def server(request: pytest.FixtureRequest) -> Iterator[StreamlitServer]:
    running = StreamlitServer(environment(request.param), options={"server.enableWebsocketCompression": "true"})
    yield running
    running.stop()


def test_heartbeats_are_acked_among_compressed_messages(open_page) -> None:
    app = open_page()
    assert "permessage-deflate" in app.frame.evaluate("watched.stream.extensions")
    errors_before = app.errors
    for beat in range(1, HEARTBEATS + 1):
        # Each message of the page refers back to earlier ones, heartbeats among them.
        assert app.heartbeat() in known.ACKS
        app.move_slider("Level")
        app.expect_text(f"level {10 + beat}")
    app.expect_text(f"run {HEARTBEATS + 1}")

    # What a server of 1.55 and later says itself comes on top: its acks are compressed, and not looked into.
    assert app.acks.count(known.COMPATIBLE_ACK) == HEARTBEATS
    metrics = app.sidecar.metrics()
    assert metrics.value("heartbeats_total") == HEARTBEATS
    assert metrics.value("acks_total", origin="sidecar") == HEARTBEATS
    assert metrics.value("tap_disabled_total") == 0
    assert len(app.stream.opened) == 1, "the page has connected again"
    expect(app.dialogs).to_have_count(0)
    assert app.errors == errors_before
