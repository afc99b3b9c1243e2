"""An embedded page of any version works undisturbed with one heartbeat per second from its host page."""

from __future__ import annotations

import hashlib
import os
import re
import statistics
from collections import Counter

import pytest
from conftest import HOSTED
from playwright.sync_api import expect
from support import known, stream_watch
from support.host_page import HostedPage

HEARTBEATS = int(os.environ.get("HEARTBEAT_SIDECAR_TEST_HEARTBEATS", "15"))
"""One per second during the tour of the app; `tests/run --all` sends 60."""

NATIVE = [version for version in HOSTED if version.acks_natively]
ACK_TIMEOUT = 0.8
"""Seconds; shorter than the interval of 1 s, so that the timer of each heartbeat can expire."""
MARGIN = 2.0
"""Seconds until a page acts on its expired timer, at most."""
native_only = pytest.mark.parametrize("hosted", NATIVE, ids=lambda version: version.name, indirect=True)


def _tour(app: HostedPage, lap: int) -> None:
    """Uses every feature of the app once: reruns, an upload, the second page with its table, and back."""
    # Streamlit resets the widgets of a page that the user leaves, so each lap starts at level 10.
    for level in (11, 12, 13):
        app.move_slider("Level")
        app.expect_text(f"level {level}")
    app.frame.get_by_role("button", name="Count").click()
    app.expect_text(f"count {lap}")

    content = hashlib.shake_256(b"%d" % lap).digest(300_000)
    app.frame.locator("input[type=file]").set_input_files(
        {"name": f"lap-{lap}.bin", "mimeType": "application/octet-stream", "buffer": content}
    )
    app.expect_text(f"upload lap-{lap}.bin {len(content)} {hashlib.sha256(content).hexdigest()}")
    # The upload causes a rerun; the widgets keep their values.
    app.expect_text(f"level {level}")
    app.expect_text(f"count {lap}")

    app.frame.get_by_role("link", name="second").click()
    app.expect_text("end of second page")
    app.expect_text(f"visit {lap}")
    app.expect_text(f"count {lap} on the second page")
    expect(app.frame.get_by_test_id("stDataFrame")).to_be_visible()
    app.frame.get_by_role("link", name="home").click()
    app.expect_text("end of page")
    app.expect_text(f"count {lap}")


def _expect_no_errors(app: HostedPage) -> None:
    expect(app.dialogs).to_have_count(0)
    expect(app.frame.get_by_text("Bad message format")).to_have_count(0)
    assert len(app.stream.opened) == 1, f"the page reconnected: {app.stream.opened}"
    assert not app.errors, app.errors


def _expect_one_ack_each(app: HostedPage, count: int) -> None:
    """Host, page and sidecar have counted the same number."""
    stream_watch.wait_for_acks(app.frame, count)
    stream = app.stream
    metrics = app.sidecar.wait_for_metrics(lambda m: m.value("acks_total") >= count)
    assert (app.posted, len(stream.heartbeats), len(stream.acks)) == (count, count, count)
    assert metrics.value("heartbeats_total") == count
    assert metrics.value("acks_total") == count
    assert metrics.value("acks_withheld_total") == 0


def _record(request: pytest.FixtureRequest, **row: object) -> None:
    text = ", ".join(f"{name} {value}" for name, value in row.items())
    request.node.user_properties.append(("heartbeats", f"{request.node.name}: {text}"))


def _record_latencies(request: pytest.FixtureRequest, app: HostedPage) -> None:
    stream = app.stream
    latencies = sorted(stream.latencies())
    _record(
        request,
        heartbeats=len(stream.heartbeats),
        acks=len(stream.acks),
        **{f"of_{ack.hex()}": count for ack, count in Counter(ack.data for ack in stream.acks).items()},
        median_ms=round(statistics.median(latencies) * 1000, 1),
        p99_ms=round(latencies[-(-len(latencies) * 99 // 100) - 1] * 1000, 1),
        dialogs=app.dialogs.count(),
        sockets=len(stream.opened),
    )


def test_the_app_works_undisturbed_while_its_host_sends_a_heartbeat_per_second(open_hosted, request) -> None:
    app = open_hosted()
    app.start_heartbeats(HEARTBEATS, interval=1, ack_timeout=5)
    laps = 0
    while laps == 0 or app.posted < HEARTBEATS:
        laps += 1
        _tour(app, laps)
    _expect_one_ack_each(app, HEARTBEATS)
    # A dialog caused by an ack would be visible by now: this lap was drawn after it.
    _tour(app, laps + 1)
    _expect_no_errors(app)
    assert len(app.acks) == HEARTBEATS, "received an ack without a heartbeat"
    _record_latencies(request, app)


@pytest.mark.parametrize("script", ["Sleep", "Spin"])
def test_acks_come_in_time_while_a_script_is_longer_than_the_ack_timeout(open_hosted, request, script) -> None:
    # Streamlit may lose a native ack at the start of a script run; the sidecar's ack must replace it in time.
    app = open_hosted("--heartbeat-native-deadline", "300ms")
    app.start_heartbeats(5, interval=1, ack_timeout=ACK_TIMEOUT)
    app.frame.get_by_role("button", name=script).click()
    app.expect_text("busy 1")
    assert app.posted >= 3, "too few heartbeats while the script ran"
    _expect_one_ack_each(app, 5)
    _expect_no_errors(app)
    assert max(app.stream.latencies()) < ACK_TIMEOUT
    _record_latencies(request, app)


@native_only
def test_the_sidecars_acks_stop_the_frontends_ack_timer(open_hosted, request) -> None:
    app = open_hosted("--heartbeat-mode", "answer")
    app.start_heartbeats(8, interval=1, ack_timeout=ACK_TIMEOUT)
    app.wait_for_posted(8)
    _expect_one_ack_each(app, 8)
    assert set(app.acks) == {known.COMPATIBLE_ACK}
    _expect_no_errors(app)
    _record_latencies(request, app)


@native_only
@pytest.mark.parametrize("mode", ["answer", "auto"])
def test_a_page_whose_acks_are_withheld_reconnects_in_time_and_keeps_its_session(
    open_hosted, hosted, request, mode
) -> None:
    app = open_hosted("--heartbeat-mode", mode)
    app.frame.get_by_role("button", name="Count").click()
    app.expect_text("count 1")
    app.start_heartbeats(1, interval=1, ack_timeout=ACK_TIMEOUT)
    _expect_one_ack_each(app, 1)

    with hosted.server.frozen():
        app.start_heartbeats(1, interval=1, ack_timeout=ACK_TIMEOUT)
        stream_watch.wait_until_closed(app.frame)
        # The page polls the server over HTTP before it opens a socket; a frozen server does not answer.
        expect(app.frame.get_by_text("Connecting")).to_be_visible()
        assert len(app.acks) == 1, "received an ack while the server was frozen"
    stream = app.stream
    waited = stream.closed[0] - stream.heartbeats[1].at
    assert ACK_TIMEOUT <= waited < ACK_TIMEOUT + MARGIN, f"the page closed its socket {waited:.2f} s after the heartbeat"

    stream_watch.wait_for_sockets(app.frame, 2)
    app.expect_connected()
    app.frame.get_by_role("button", name="Count").click()
    app.expect_text("count 2")
    expect(app.dialogs).to_have_count(0)
    _record(request, waited_s=round(waited, 2), session="kept")


@native_only
def test_a_page_with_a_dead_websocket_reconnects_in_time_and_keeps_its_session(open_hosted, request) -> None:
    app = open_hosted(relayed=True)
    for count in (1, 2):
        app.frame.get_by_role("button", name="Count").click()
        app.expect_text(f"count {count}")
    app.start_heartbeats(1, interval=1, ack_timeout=ACK_TIMEOUT)
    _expect_one_ack_each(app, 1)

    app.relay.blackhole_websockets()
    app.start_heartbeats(1, interval=1, ack_timeout=ACK_TIMEOUT)
    stream_watch.wait_for_sockets(app.frame, 2)
    stream = app.stream
    waited = stream.opened[1].at - stream.heartbeats[1].at
    assert ACK_TIMEOUT <= waited < ACK_TIMEOUT + MARGIN, f"the page reconnected {waited:.2f} s after the heartbeat"

    app.expect_connected()
    app.start_heartbeats(1, interval=1, ack_timeout=ACK_TIMEOUT)
    stream_watch.wait_for_acks(app.frame, 2)
    app.frame.get_by_role("button", name="Count").click()
    app.expect_text("count 3")
    expect(app.dialogs).to_have_count(0)
    _record(request, waited_s=round(waited, 2))


def test_after_a_restart_of_the_sidecar_the_page_keeps_its_session_and_its_heartbeats_are_acked(
    open_hosted, request
) -> None:
    app = open_hosted()
    app.frame.get_by_role("button", name="Count").click()
    app.expect_text("count 1")
    app.start_heartbeats(2, interval=1, ack_timeout=5)
    _expect_one_ack_each(app, 2)

    app.sidecar.restart()
    stream_watch.wait_for_sockets(app.frame, 2)
    app.expect_connected()
    first, second = app.stream.opened
    assert (len(first.entries), len(second.entries)) == (2, 3), "the page did not send its session id"
    # The new sidecar may have to learn that this upstream sends no acks: these wait for its native deadline.
    app.start_heartbeats(2, interval=1, ack_timeout=5)
    stream_watch.wait_for_acks(app.frame, 4)
    app.start_heartbeats(3, interval=1, ack_timeout=ACK_TIMEOUT)
    stream_watch.wait_for_acks(app.frame, 7)
    metrics = app.sidecar.wait_for_metrics(lambda m: m.value("acks_total") >= 5)
    assert (metrics.value("heartbeats_total"), metrics.value("acks_total")) == (5, 5)
    assert max(app.stream.latencies()[-3:]) < ACK_TIMEOUT
    app.frame.get_by_role("button", name="Count").click()
    app.expect_text("count 2")
    assert len(app.stream.opened) == 2
    expect(app.dialogs).to_have_count(0)
    _record_latencies(request, app)
