"""With the watchdog a page of any version notices a dead websocket. Otherwise the watchdog has no visible effect."""

from __future__ import annotations

import time

import pytest
from conftest import HOSTED
from playwright.sync_api import expect
from support import known, stream_watch
from support.host_page import HostedPage

INTERVAL, ACK_TIMEOUT = 1.0, 2.0
"""Seconds, for the watchdog's heartbeats and for the host page's."""
MARGIN = 5.0
"""Seconds until a page acts on its expired timer, at most, on a busy machine."""
LONG_TIMEOUT = ["--watchdog", "self", "--watchdog-interval", f"{INTERVAL}s", "--watchdog-ack-timeout", "20s"]
SHORT_TIMEOUT = [*LONG_TIMEOUT[:-1], f"{ACK_TIMEOUT}s"]
RECONNECTS = ["--resume-enabled", "false"]
"""The page opens another connection to the app, as it would without resumption."""

legacy_only = pytest.mark.parametrize(
    "hosted", [version for version in HOSTED if not version.acks_natively], ids=lambda v: v.name, indirect=True
)


def _reconnects(app, cause: str) -> float:
    return app.sidecar.metrics().value("reconnects_total", cause=cause)


def _expect_no_errors(app) -> None:
    expect(app.dialogs).to_have_count(0)
    assert len(app.stream.opened) == 1, f"the page reconnected: {app.stream.opened}"
    assert not app.errors, app.errors


def test_the_watchdogs_heartbeats_are_acked_and_have_no_visible_effect(open_hosted) -> None:
    app = open_hosted(*LONG_TIMEOUT, embedded=False)
    stream_watch.wait_for_acks(app.frame, 4)
    app.move_slider("Level")
    app.expect_text("level 11")
    app.frame.get_by_role("link", name="second").click()
    app.expect_text("end of second page")
    stream_watch.wait_for_acks(app.frame, 6)
    _expect_no_errors(app)
    first, second = (beat.at for beat in app.stream.heartbeats[1:3])
    assert INTERVAL - 0.1 < second - first < INTERVAL + MARGIN, "heartbeats are not at the configured interval"
    metrics = app.sidecar.metrics()
    assert metrics.value("watchdog_pages_total", result="added") == 1
    assert metrics.value("watchdog_pages_total") == 1
    assert metrics.value("reconnects_total") == 0


@pytest.mark.parametrize("mode", ["self", "host"])
def test_a_page_with_a_dead_websocket_reconnects_in_time_and_keeps_its_session(open_hosted, mode) -> None:
    options = SHORT_TIMEOUT if mode == "self" else ["--watchdog", "host"]
    app = open_hosted(*options, *RECONNECTS, relayed=True, embedded=mode == "host")
    for count in (1, 2):
        app.frame.get_by_role("button", name="Count").click()
        app.expect_text(f"count {count}")
    if isinstance(app, HostedPage):
        app.start_heartbeats(1000, interval=INTERVAL, ack_timeout=ACK_TIMEOUT)
    stream_watch.wait_for_acks(app.frame, 2)
    assert len(app.stream.opened) == 1

    app.relay.blackhole_websockets()
    died = time.monotonic()
    stream_watch.wait_for_sockets(app.frame, 2)
    noticed = time.monotonic() - died
    assert noticed < INTERVAL + ACK_TIMEOUT + MARGIN, f"the page reconnected after {noticed:.2f} s"
    app.expect_connected()
    app.frame.get_by_role("button", name="Count").click()
    app.expect_text("count 3")
    expect(app.dialogs).to_have_count(0)
    acks = len(app.acks)
    stream_watch.wait_for_acks(app.frame, acks + 2)
    assert len(app.stream.opened) == 2, "the page reconnected from a live connection"
    assert (_reconnects(app, "watchdog"), _reconnects(app, "other")) == (1, 0)


def test_a_page_with_a_dead_websocket_resumes_its_session_and_the_app_notices_nothing(open_hosted) -> None:
    app = open_hosted(*SHORT_TIMEOUT, relayed=True, embedded=False)
    for count in (1, 2):
        app.frame.get_by_role("button", name="Count").click()
        app.expect_text(f"count {count}")
    stream_watch.wait_for_acks(app.frame, 2)
    app.relay.blackhole_websockets()
    app.frame.get_by_role("button", name="Count").click()
    app.expect_text("count 3")
    expect(app.dialogs).to_have_count(0)
    metrics = app.sidecar.metrics()
    assert metrics.value("resumptions_total", level="one") == 1
    assert metrics.value("reconnects_total") == 0
    assert metrics.value("sessions") == 1


def test_host_heartbeats_without_a_timeout_start_no_timer(open_hosted) -> None:
    app = open_hosted("--watchdog", "host", *RECONNECTS, relayed=True)
    app.start_heartbeats(1, interval=INTERVAL, ack_timeout=ACK_TIMEOUT)
    stream_watch.wait_for_acks(app.frame, 1)
    app.relay.blackhole_websockets()
    app.page.evaluate("host.start(500, undefined, 6)")
    app.wait_for_posted(7)
    _expect_no_errors(app)


@legacy_only
def test_after_the_sidecar_is_removed_the_page_reconnects_twice_at_most(open_hosted, hosted) -> None:
    app = open_hosted(*SHORT_TIMEOUT, *RECONNECTS, relayed=True, embedded=False)
    stream_watch.wait_for_acks(app.frame, 1)
    app.relay.set_upstream(hosted.address)
    app.relay.blackhole_websockets()
    # One reconnect from the dead connection, and one from the new one, because the page had received acks before.
    stream_watch.wait_for_sockets(app.frame, 3)
    app.expect_connected()
    beats = len(app.stream.heartbeats)
    stream_watch.wait_for_heartbeats(app.frame, beats + 6)
    assert len(app.stream.opened) == 3


@pytest.mark.parametrize("script", ["Sleep", "Spin"])
def test_a_busy_script_causes_no_reconnect(open_hosted, script) -> None:
    app = open_hosted(*LONG_TIMEOUT, embedded=False)
    stream_watch.wait_for_acks(app.frame, 1)
    app.frame.get_by_role("button", name=script).click()
    app.expect_text("busy 1")
    stream_watch.wait_for_acks(app.frame, 5)
    assert set(app.acks) <= set(known.ACKS)
    _expect_no_errors(app)
