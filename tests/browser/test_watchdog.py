"""With the watchdog, a page of any version notices that its websocket is dead, and otherwise nobody notices it."""

from __future__ import annotations

import time

import pytest
from conftest import HOSTED
from playwright.sync_api import expect
from support import known, stream_watch
from support.host_page import HostedPage

INTERVAL, ACK_TIMEOUT = 1.0, 2.0
"""Seconds, of the page's own heartbeats and of its host's."""
MARGIN = 5.0
"""Seconds that a page may take to act on its timer, on a busy machine."""
UNHURRIED = ["--watchdog", "self", "--watchdog-interval", f"{INTERVAL}s", "--watchdog-ack-timeout", "20s"]
OWN = [*UNHURRIED[:-1], f"{ACK_TIMEOUT}s"]

legacy_only = pytest.mark.parametrize(
    "hosted", [version for version in HOSTED if not version.acks_natively], ids=lambda v: v.name, indirect=True
)


def _reconnects(app, cause: str) -> float:
    return app.sidecar.metrics().value("reconnects_total", cause=cause)


def _expect_untroubled(app) -> None:
    expect(app.dialogs).to_have_count(0)
    assert len(app.stream.opened) == 1, f"the page has connected again: {app.stream.opened}"
    assert not app.errors, app.errors


def test_the_pages_own_heartbeats_are_acked_and_nobody_notices(open_hosted) -> None:
    app = open_hosted(*UNHURRIED, alone=True)
    stream_watch.wait_for_acks(app.frame, 4)
    app.move_slider("Level")
    app.expect_text("level 11")
    app.frame.get_by_role("link", name="second").click()
    app.expect_text("end of second page")
    stream_watch.wait_for_acks(app.frame, 6)
    _expect_untroubled(app)
    first, second = (beat.at for beat in app.stream.heartbeats[1:3])
    assert INTERVAL - 0.1 < second - first < INTERVAL + MARGIN, "paced as configured"
    metrics = app.sidecar.metrics()
    assert metrics.value("watchdog_pages_total", result="added") == 1
    assert metrics.value("watchdog_pages_total") == 1
    assert metrics.value("reconnects_total") == 0


@pytest.mark.parametrize("mode", ["self", "host"])
def test_a_page_whose_socket_has_gone_dead_opens_another_in_time_and_keeps_its_session(open_hosted, mode) -> None:
    app = open_hosted(*OWN, mortal=True, alone=True) if mode == "self" else open_hosted("--watchdog", "host", mortal=True)
    for count in (1, 2):
        app.frame.get_by_role("button", name="Count").click()
        app.expect_text(f"count {count}")
    if isinstance(app, HostedPage):
        app.start_heartbeats(1000, interval=INTERVAL, ack_timeout=ACK_TIMEOUT)
    stream_watch.wait_for_acks(app.frame, 2)
    assert len(app.stream.opened) == 1

    app.relay.let_websockets_die()
    died = time.monotonic()
    stream_watch.wait_for_sockets(app.frame, 2)
    noticed = time.monotonic() - died
    assert noticed < INTERVAL + ACK_TIMEOUT + MARGIN, f"the page connected again after {noticed:.2f} s"
    app.expect_connected()
    app.frame.get_by_role("button", name="Count").click()
    app.expect_text("count 3")
    expect(app.dialogs).to_have_count(0)
    acks = len(app.acks)
    stream_watch.wait_for_acks(app.frame, acks + 2)
    assert len(app.stream.opened) == 2, "the new connection is watched too, and found alive"
    assert (_reconnects(app, "watchdog"), _reconnects(app, "other")) == (1, 0)


def test_a_host_that_names_no_timeout_starts_no_timer(open_hosted) -> None:
    app = open_hosted("--watchdog", "host", mortal=True)
    app.start_heartbeats(1, interval=INTERVAL, ack_timeout=ACK_TIMEOUT)
    stream_watch.wait_for_acks(app.frame, 1)
    app.relay.let_websockets_die()
    app.page.evaluate("host.start(500, undefined, 6)")
    app.wait_for_posted(7)
    _expect_untroubled(app)


@legacy_only
def test_a_page_whose_sidecar_is_gone_does_not_reconnect_for_ever(open_hosted, hosted) -> None:
    app = open_hosted(*OWN, mortal=True, alone=True)
    stream_watch.wait_for_acks(app.frame, 1)
    app.relay.lead_to(hosted.address)
    app.relay.let_websockets_die()
    # One for the dead connection, and one since that one's acks had come.
    stream_watch.wait_for_sockets(app.frame, 3)
    app.expect_connected()
    beats = len(app.stream.heartbeats)
    stream_watch.wait_for_heartbeats(app.frame, beats + 6)
    assert len(app.stream.opened) == 3


@pytest.mark.parametrize("script", ["Sleep", "Spin"])
def test_a_busy_script_is_no_dead_connection(open_hosted, script) -> None:
    app = open_hosted(*UNHURRIED, alone=True)
    stream_watch.wait_for_acks(app.frame, 1)
    app.frame.get_by_role("button", name=script).click()
    app.expect_text("busy 1")
    stream_watch.wait_for_acks(app.frame, 5)
    assert set(app.acks) <= set(known.ACKS)
    _expect_untroubled(app)
