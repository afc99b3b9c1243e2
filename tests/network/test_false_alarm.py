"""The watchdog does not reconnect a page on a bad network, or during one large message, only on a dead network."""

from __future__ import annotations

import time
from pathlib import Path

from conftest import NETWORK
from playwright.sync_api import expect
from support import status_watch
from support.cable import Line
from visitor import ACK_TIMEOUT_SECONDS, INTERVAL_SECONDS, NOTICED_WITHIN, Plan, Visitor, visitors

BAD_LINE = Line(delay=0.3, loss=0.02)
"""In each direction, so every round trip takes at least 600 ms."""
BAD_SECONDS = 600.0
BETWEEN_CLICKS = 30.0
CLICK_TIMEOUT = 60.0
"""Seconds."""

SLOW_LINE = Line(delay=0.02, rate=2e6)
LARGE_APP = Path(__file__).resolve().parent / "large_app.py"
LARGE_BYTES = 20_000_000
LARGE_SECONDS = 200.0
"""Timeout for the table, which takes 84 s on the slow line."""
DEAD_AFTER = 10.0
"""Seconds after the request for the table."""

# The server's pings queue behind the table, and after 30 s without a pong the server closes the connection.
RARE_PINGS = {"server.websocketPingInterval": "600"}

ALL_PLANS = [Plan(version, "self") for version in NETWORK]
ALL_PLANS += [Plan(version, "host", hosted=True) for version in NETWORK if version.does_not_enforce_acks]
NEWEST = NETWORK[-1]
LAST_LEGACY = [version for version in NETWORK if not version.acks_natively][-1:]
WATCHED = [plan for plan in ALL_PLANS if plan.version in (*LAST_LEGACY, NEWEST)]
NATIVE = [Plan(NEWEST, hosted=True), Plan(NEWEST, hosted=True, direct=True)]
"""Streamlit's own reconnect, with and without a sidecar."""


def _reconnects(visitor: Visitor, cause: str) -> float:
    return visitor.page.sidecar.metrics().value("reconnects_total", cause=cause)


def _state(visitor: Visitor) -> dict[str, str]:
    stream = visitor.page.stream
    return {
        "page": str(visitor.plan),
        "heartbeats": str(len(stream.heartbeats)),
        "acks": str(len(stream.acks)),
        "sockets": str(len(stream.opened)),
        "reconnects by the watchdog": f"{_reconnects(visitor, 'watchdog'):.0f}",
        "others": f"{_reconnects(visitor, 'other'):.0f}",
    }


def test_a_slow_line_with_packet_loss_causes_no_watchdog_reconnect(chromium, host, network, request) -> None:
    with visitors(chromium, host, ALL_PLANS, request.node.name) as people:
        for visitor in people:
            visitor.start_heartbeats()
        for visitor in people:
            visitor.wait_for_acks(1)
        before = network.counts
        network.shape(BAD_LINE)
        end = time.monotonic() + BAD_SECONDS
        while (left := end - time.monotonic()) > 0:
            for visitor in people:
                visitor.click_until_answered(CLICK_TIMEOUT)
            people[0].page.page.wait_for_timeout(min(left, BETWEEN_CLICKS) * 1000)
        network.restore()
        passed, lost = (after - earlier for after, earlier in zip(network.counts, before))
        assert lost > passed / 100, "too few packets were lost"
        request.node.user_properties.extend(("measured", _state(visitor)) for visitor in people)
        for visitor in people:
            assert _reconnects(visitor, "watchdog") == 0, _state(visitor)
            expect(visitor.page.dialogs).to_have_count(0)
            if not visitor.plan.version.has_short_ping_timeout:
                _expect_steady(visitor)


def _expect_steady(visitor: Visitor) -> None:
    stream = visitor.page.stream
    assert len(stream.opened) == 1, _state(visitor)
    assert len(stream.heartbeats) >= BAD_SECONDS / INTERVAL_SECONDS, _state(visitor)
    visitor.wait_for_acks(len(stream.heartbeats))
    waited = max(visitor.page.stream.latencies())
    assert waited < ACK_TIMEOUT_SECONDS, f"{visitor.plan} waited {waited:.1f} s for an ack"


def _row(visitor: Visitor, requested: float) -> dict[str, str]:
    arrived = status_watch.texts(visitor.page.frame).get("table 1")
    stream = visitor.page.stream
    return {
        "page": str(visitor.plan),
        "table arrived after s": "-" if arrived is None else f"{arrived - requested:.1f}",
        "largest message": str(stream.largest),
        "heartbeats": str(len(stream.heartbeats)),
        "acks": str(len(stream.acks)),
        "sockets": str(len(stream.opened)),
    }


def test_a_large_message_on_a_slow_line_causes_no_reconnect(chromium, host, network, request) -> None:
    with visitors(chromium, host, [*WATCHED, *NATIVE], request.node.name, LARGE_APP, RARE_PINGS) as people:
        for visitor in people:
            visitor.start_heartbeats()
        for visitor in people:
            visitor.wait_for_acks(1)
        network.shape(SLOW_LINE)
        requested = time.time()
        for visitor in people:
            visitor.request_table()
        watched = people[: len(WATCHED)]
        for visitor in watched:
            status_watch.wait_for_text(visitor.page.frame, "table 1", LARGE_SECONDS)
        for visitor in people:
            request.node.user_properties.append(("measured", _row(visitor, requested)))
        for visitor in watched:
            stream = visitor.page.stream
            assert stream.largest >= LARGE_BYTES, visitor.plan
            assert len(stream.opened) == 1, visitor.plan
            visitor.wait_for_acks(len(stream.heartbeats) - 1)


def test_a_line_that_dies_during_a_large_message_is_noticed_in_time(chromium, host, network, request) -> None:
    with visitors(chromium, host, WATCHED, request.node.name, LARGE_APP, RARE_PINGS) as people:
        for visitor in people:
            visitor.start_heartbeats()
        for visitor in people:
            visitor.wait_for_acks(1)
        network.shape(SLOW_LINE)
        for visitor in people:
            visitor.request_table()
        people[0].page.page.wait_for_timeout(DEAD_AFTER * 1000)
        network.drop()
        lost = time.time()
        for visitor in people:
            status_watch.wait_until_connecting(visitor.page.frame, 2 * NOTICED_WITHIN)
            noticed = visitor.seconds_to_notice(lost)
            assert noticed is not None, visitor.plan
            row = {"page during a large message": str(visitor.plan), "noticed s": f"{noticed:.1f}"}
            request.node.user_properties.append(("measured", row))
        for visitor in people:
            assert visitor.seconds_to_notice(lost) <= NOTICED_WITHIN, visitor.plan
