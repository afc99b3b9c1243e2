"""A page with a compressed websocket accepts the sidecar's acks between its compressed messages."""

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
        # Each compressed message of the page refers to earlier ones, including heartbeats.
        assert app.heartbeat() in known.ACKS
        app.move_slider("Level")
        app.expect_text(f"level {10 + beat}")
    app.expect_text(f"run {HEARTBEATS + 1}")

    # From 1.55 on the native acks come in addition: they are compressed, so the sidecar does not see them.
    assert app.acks.count(known.COMPATIBLE_ACK) == HEARTBEATS
    metrics = app.sidecar.metrics()
    assert metrics.value("heartbeats_total") == HEARTBEATS
    assert metrics.value("acks_total", origin="sidecar") == HEARTBEATS
    assert metrics.value("sessions_unparsable_total") == 0
    assert len(app.stream.opened) == 1, "the page reconnected"
    expect(app.dialogs).to_have_count(0)
    assert app.errors == errors_before
