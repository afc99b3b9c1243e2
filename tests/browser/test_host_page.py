"""A page that is embedded by a platform takes a heartbeat a second without ever being harmed, whatever its version."""

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
"""A second apart, in the tour of the app; `tests/run --all` sends a minute of them."""

NATIVE = [version for version in HOSTED if version.acks_natively]
ACK_TIMEOUT = 0.8
"""Seconds; less than the second between heartbeats, so that the timer of each can run out."""
MARGIN = 2.0
"""Seconds that a page may take to act on its timer."""
native_only = pytest.mark.parametrize("hosted", NATIVE, ids=lambda version: version.name, indirect=True)


def _tour(app: HostedPage, lap: int) -> None:
    """Once through all that the app has: reruns, an upload, the other page and its table, and back."""
    # Streamlit forgets the widgets of a page that is left, so each lap begins at the slider's 10.
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
    # The upload was a rerun: what the widgets held before it, they still hold.
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


def _expect_unharmed(app: HostedPage) -> None:
    expect(app.dialogs).to_have_count(0)
    expect(app.frame.get_by_text("Bad message format")).to_have_count(0)
    assert len(app.stream.opened) == 1, f"the page has connected again: {app.stream.opened}"
    assert not app.errors, app.errors


def _expect_one_ack_each(app: HostedPage, count: int) -> None:
    """The host, the page and the sidecar agree on the number."""
    stream_watch.wait_for_acks(app.frame, count)
    stream = app.stream
    metrics = app.sidecar.wait_for_metrics(lambda m: m.value("acks_total") >= count)
    assert (app.posted, len(stream.heartbeats), len(stream.acks)) == (count, count, count)
    assert metrics.value("heartbeats_total") == count
    assert metrics.value("acks_total") == count
    assert metrics.value("acks_withheld_total") == 0


def _tell(request: pytest.FixtureRequest, **row: object) -> None:
    words = ", ".join(f"{name} {value}" for name, value in row.items())
    request.node.user_properties.append(("heartbeats", f"{request.node.name}: {words}"))


def _tell_latencies(request: pytest.FixtureRequest, app: HostedPage) -> None:
    stream = app.stream
    latencies = sorted(stream.latencies())
    _tell(
        request,
        heartbeats=len(stream.heartbeats),
        acks=len(stream.acks),
        **{f"of_{ack.hex()}": count for ack, count in Counter(ack.data for ack in stream.acks).items()},
        median_ms=round(statistics.median(latencies) * 1000, 1),
        p99_ms=round(latencies[-(-len(latencies) * 99 // 100) - 1] * 1000, 1),
        dialogs=app.dialogs.count(),
        sockets=len(stream.opened),
    )


def test_the_app_works_on_while_its_host_sends_a_heartbeat_a_second(open_hosted, request) -> None:
    app = open_hosted()
    app.start_heartbeats(HEARTBEATS, interval=1, ack_timeout=5)
    laps = 0
    while laps == 0 or app.posted < HEARTBEATS:
        laps += 1
        _tour(app, laps)
    _expect_one_ack_each(app, HEARTBEATS)
    # A dialog that an ack had called for would be there by now: this lap was drawn after it.
    _tour(app, laps + 1)
    _expect_unharmed(app)
    assert len(app.acks) == HEARTBEATS, "an ack came that nothing had asked for"
    _tell_latencies(request, app)


@pytest.mark.parametrize("script", ["Sleep", "Spin"])
def test_acks_come_in_time_while_a_script_is_longer_than_the_ack_timeout(open_hosted, request, script) -> None:
    # A native ack that Streamlit loses at the start of a script run is made up for in time.
    app = open_hosted("--heartbeat-native-deadline", "300ms")
    app.start_heartbeats(5, interval=1, ack_timeout=ACK_TIMEOUT)
    app.frame.get_by_role("button", name=script).click()
    app.expect_text("busy 1")
    assert app.posted >= 3, "the script was to run under heartbeats"
    _expect_one_ack_each(app, 5)
    _expect_unharmed(app)
    assert max(app.stream.latencies()) < ACK_TIMEOUT
    _tell_latencies(request, app)


@native_only
def test_the_frontends_ack_timer_is_satisfied_by_the_sidecars_acks(open_hosted, request) -> None:
    app = open_hosted("--heartbeat-mode", "answer")
    app.start_heartbeats(8, interval=1, ack_timeout=ACK_TIMEOUT)
    app.wait_for_posted(8)
    _expect_one_ack_each(app, 8)
    assert set(app.acks) == {known.COMPATIBLE_ACK}
    _expect_unharmed(app)
    _tell_latencies(request, app)


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
        stream_watch.wait_until_left(app.frame)
        # A frozen server does not answer over HTTP either, and the page asks there before it opens a new socket.
        expect(app.frame.get_by_text("Connecting")).to_be_visible()
        assert len(app.acks) == 1, "an ack came from a server that stood still"
    stream = app.stream
    waited = stream.left[0] - stream.heartbeats[1].at
    assert ACK_TIMEOUT <= waited < ACK_TIMEOUT + MARGIN, f"the page gave up {waited:.2f} s after the heartbeat"

    stream_watch.wait_for_sockets(app.frame, 2)
    app.expect_connected()
    app.frame.get_by_role("button", name="Count").click()
    app.expect_text("count 2")
    expect(app.dialogs).to_have_count(0)
    _tell(request, waited_s=round(waited, 2), session="kept")


@native_only
def test_a_page_whose_socket_has_gone_dead_opens_another_in_time_and_keeps_its_session(open_hosted, request) -> None:
    app = open_hosted(mortal=True)
    for count in (1, 2):
        app.frame.get_by_role("button", name="Count").click()
        app.expect_text(f"count {count}")
    app.start_heartbeats(1, interval=1, ack_timeout=ACK_TIMEOUT)
    _expect_one_ack_each(app, 1)

    app.relay.let_websockets_die()
    app.start_heartbeats(1, interval=1, ack_timeout=ACK_TIMEOUT)
    stream_watch.wait_for_sockets(app.frame, 2)
    stream = app.stream
    waited = stream.opened[1].at - stream.heartbeats[1].at
    assert ACK_TIMEOUT <= waited < ACK_TIMEOUT + MARGIN, f"the page connected again {waited:.2f} s after the heartbeat"

    app.expect_connected()
    app.start_heartbeats(1, interval=1, ack_timeout=ACK_TIMEOUT)
    stream_watch.wait_for_acks(app.frame, 2)
    app.frame.get_by_role("button", name="Count").click()
    app.expect_text("count 3")
    expect(app.dialogs).to_have_count(0)
    _tell(request, waited_s=round(waited, 2))


def test_a_page_from_before_a_restart_of_the_sidecar_goes_on_and_its_heartbeats_are_acked(
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
    assert (len(first.entries), len(second.entries)) == (2, 3), "the page was to ask for its session"
    # The new sidecar may have to learn that this upstream does not answer: these wait for its native deadline.
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
    _tell_latencies(request, app)
