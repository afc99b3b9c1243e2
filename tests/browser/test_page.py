"""The page in a real browser works through the sidecar as without, and takes every ack without a word."""

from __future__ import annotations

import random

import pytest
from conftest import NEW, OLD
from playwright.sync_api import expect
from support import known

HEARTBEATS = 10


@pytest.mark.parametrize("mode", ["auto", "answer"])
def test_acks_are_taken_without_a_dialog_or_a_console_error(open_page, mode) -> None:
    app = open_page("--heartbeat-mode", mode)
    errors_before = app.errors
    acks = [app.heartbeat() for _ in range(HEARTBEATS)]
    # A rerun's output is drawn after all that came before it, so a dialog would be there by now.
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
def test_the_ack_is_the_servers_own_where_it_has_one(open_page, ack) -> None:
    assert open_page().heartbeat() == ack


@pytest.mark.parametrize("server", [OLD], indirect=True)
def test_a_plain_ack_would_show_the_old_frontends_dialog(open_page) -> None:
    app = open_page("--heartbeat-ack", "plain")
    assert app.heartbeat() == known.PLAIN_ACK
    expect(app.dialogs).to_be_visible()
    expect(app.dialogs).to_contain_text("Bad message format")


def test_an_upload_reaches_the_app_and_a_download_the_disk_byte_for_byte(open_page) -> None:
    app = open_page()
    content = random.Random(2).randbytes(500_000)
    app.pass_files(content)
    expect(app.dialogs).to_have_count(0)
