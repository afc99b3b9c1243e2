"""The watchdog leaves a page alone whose network is bad, or busy with one large message, but not dead."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import NETWORK
from playwright.sync_api import expect
from support import status_watch
from support.cable import Line
from visitor import INTERVAL_SECONDS, NOTICED_WITHIN, Plan, Visitor, visitors

BAD_LINE = Line(delay=0.3, loss=0.02)
"""Each way, so that nothing is answered in less than 600 ms."""
BAD_SECONDS = 600.0
BETWEEN_CLICKS = 30.0

SLOW_LINE = Line(delay=0.02, rate=2e6)
LARGE_APP = Path(__file__).resolve().parent / "large_app.py"
LARGE_BYTES = 20_000_000
LARGE_SECONDS = 200.0
"""A table takes 84 on the slow line."""
DEAD_AFTER = 10.0
"""Seconds of the table's way."""

# A server's ping waits behind the table like all else, and servers give up on a page that has not answered one for 30 s.
SELDOM_PINGED = {"server.websocketPingInterval": "600"}
LEGACY, NEWEST = (next(version for version in NETWORK if version.name == name) for name in ("1.53.1", "1.67.0"))
WATCHED = [Plan(LEGACY, "self"), Plan(LEGACY, "host", hosted=True), Plan(NEWEST, "self")]
NATIVE = [Plan(NEWEST, hosted=True), Plan(NEWEST, hosted=True, direct=True)]
"""Streamlit's own mechanism, with a sidecar in between and without."""


def _plans() -> list[Plan]:
    hosted = [version for version in NETWORK if version.obeys_hosts and not version.acks_natively]
    return [*(Plan(version, "self") for version in NETWORK), *(Plan(version, "host", hosted=True) for version in hosted)]


def _reconnects(visitor: Visitor, cause: str) -> float:
    return visitor.page.sidecar.metrics().value("reconnects_total", cause=cause)


def test_a_slow_line_that_loses_packets_is_no_dead_one(chromium, host, network, request) -> None:
    with visitors(chromium, host, _plans(), request.node.name) as everyone:
        for visitor in everyone:
            visitor.start_heartbeats()
        for visitor in everyone:
            visitor.wait_for_acks(1)
        passed, lost = network.counts
        network.shape(BAD_LINE)
        end = time.monotonic() + BAD_SECONDS
        while (left := end - time.monotonic()) > 0:
            for visitor in everyone:
                visitor.click_until_answered(60)
            everyone[0].page.page.wait_for_timeout(min(left, BETWEEN_CLICKS) * 1000)
        network.restore()
        passed, lost = (after - before for after, before in zip(network.counts, (passed, lost)))
        for visitor in everyone:
            stream = visitor.page.stream
            row = {
                "page": str(visitor.plan),
                "heartbeats": str(len(stream.heartbeats)),
                "acks": str(len(stream.acks)),
                "sockets": str(len(stream.opened)),
                "by the watchdog": f"{_reconnects(visitor, 'watchdog'):.0f}",
                "lost": f"{lost} of {passed + lost}",
            }
            request.node.user_properties.append(("measured", row))
        print(*(f"\n{properties[1]}" for properties in request.node.user_properties))
        for visitor in everyone:
            assert _reconnects(visitor, "watchdog") == 0, visitor.plan
            assert len(visitor.page.stream.opened) == 1, visitor.plan
            beats, acks = len(visitor.page.stream.heartbeats), len(visitor.page.stream.acks)
            assert beats - 1 <= acks <= beats, f"{visitor.plan}: {acks} acks for {beats} heartbeats"
            assert beats >= BAD_SECONDS / INTERVAL_SECONDS
            expect(visitor.page.dialogs).to_have_count(0)


def _row(visitor: Visitor, asked: float) -> dict[str, str]:
    came = status_watch.texts(visitor.page.frame).get("table 1")
    stream = visitor.page.stream
    return {
        "page": str(visitor.plan),
        "table came after s": "-" if came is None else f"{came - asked:.1f}",
        "largest message": str(stream.largest),
        "heartbeats": str(len(stream.heartbeats)),
        "acks": str(len(stream.acks)),
        "sockets": str(len(stream.opened)),
    }


def test_a_large_message_on_a_slow_line_is_not_cut_short(chromium, host, network, request) -> None:
    with visitors(chromium, host, [*WATCHED, *NATIVE], request.node.name, LARGE_APP, SELDOM_PINGED) as everyone:
        for visitor in everyone:
            visitor.start_heartbeats()
        for visitor in everyone:
            visitor.wait_for_acks(1)
        network.shape(SLOW_LINE)
        asked = time.time()
        for visitor in everyone:
            visitor.ask_for_table()
        watched = everyone[: len(WATCHED)]
        for visitor in watched:
            status_watch.wait_for_text(visitor.page.frame, "table 1", LARGE_SECONDS)
        for visitor in everyone:
            request.node.user_properties.append(("measured", _row(visitor, asked)))
        for visitor in watched:
            stream = visitor.page.stream
            assert stream.largest >= LARGE_BYTES, visitor.plan
            assert len(stream.opened) == 1, visitor.plan
            visitor.wait_for_acks(len(stream.heartbeats) - 1)


def test_a_line_that_goes_dead_under_a_large_message_is_noticed(chromium, host, network, request) -> None:
    with visitors(chromium, host, WATCHED, request.node.name, LARGE_APP, SELDOM_PINGED) as everyone:
        for visitor in everyone:
            visitor.start_heartbeats()
        for visitor in everyone:
            visitor.wait_for_acks(1)
        network.shape(SLOW_LINE)
        for visitor in everyone:
            visitor.ask_for_table()
        everyone[0].page.page.wait_for_timeout(DEAD_AFTER * 1000)
        network.drop()
        lost = time.time()
        for visitor in everyone:
            visitor.wait_until_noticed(2 * NOTICED_WITHIN)
            noticed = visitor.seconds_to_notice(lost)
            request.node.user_properties.append(("measured", {"page": str(visitor.plan), "noticed s": f"{noticed:.1f}"}))
        for visitor in everyone:
            assert visitor.seconds_to_notice(lost) <= NOTICED_WITHIN, visitor.plan
