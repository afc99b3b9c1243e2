"""The page in a real browser works as without the sidecar, and accepts every ack without a dialog or an error."""

from __future__ import annotations

import random

import pytest
from conftest import NEW, OLD
from playwright.sync_api import expect
from support import known

HEARTBEATS = 10


@pytest.mark.parametrize("mode", ["auto", "answer"])
def test_acks_cause_no_dialog_and_no_console_error(open_page, mode) -> None:
    app = open_page("--heartbeat-mode", mode)
    errors_before = app.errors
    acks = [app.heartbeat() for _ in range(HEARTBEATS)]
    # A rerun's output is drawn after everything before it, so a dialog would be visible by now.
    app.move_slider("Level")
    app.expect_text("level 11")
    app.expect_text("run 2")
    app.expect_text("end of page")

    assert len(app.acks) == HEARTBEATS, f"{len(app.acks)} acks for {HEARTBEATS} heartbeats"
    origin = "upstream" if known.PLAIN_ACK in acks else "sidecar"
    metrics = app.sidecar.metrics()
    assert metrics.value("heartbeats_total") == HEARTBEATS
    assert metrics.value("acks_total", origin=origin) == HEARTBEATS
    expect(app.dialogs).to_have_count(0)
    expect(app.page.get_by_text("Bad message format")).to_have_count(0)
    assert app.errors == errors_before


@pytest.mark.parametrize(
    ("server", "ack"), [(OLD, known.COMPATIBLE_ACK), (NEW, known.PLAIN_ACK)], indirect=["server"], ids=[OLD, NEW]
)
def test_the_ack_is_native_if_the_server_sends_one_and_else_the_sidecars(open_page, ack) -> None:
    assert open_page().heartbeat() == ack


@pytest.mark.parametrize("server", [OLD], indirect=True)
def test_a_plain_ack_shows_an_error_dialog_in_an_old_frontend(open_page) -> None:
    app = open_page("--heartbeat-ack", "plain")
    assert app.heartbeat() == known.PLAIN_ACK
    expect(app.dialogs).to_be_visible()
    expect(app.dialogs).to_contain_text("Bad message format")


def test_an_upload_and_a_download_pass_byte_for_byte(open_page) -> None:
    app = open_page()
    content = random.Random(2).randbytes(500_000)
    app.check_upload_and_download(content)
    expect(app.dialogs).to_have_count(0)
