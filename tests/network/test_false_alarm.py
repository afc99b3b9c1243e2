"""The watchdog leaves a page alone whose network is bad, or busy with one large message, but not dead."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import NETWORK
from playwright.sync_api import expect
from support import stream_watch
from support.cable import Line
from visitor import INTERVAL_SECONDS, Plan, Visitor, visitors

BAD_LINE = Line(delay=0.3, loss=0.02)
"""Each way, so that nothing is answered in less than 600 ms."""
BAD_SECONDS = 600.0
BETWEEN_CLICKS = 30.0

SLOW_LINE = Line(delay=0.02, rate=2e6)
LARGE_APP = Path(__file__).resolve().parent / "large_app.py"
LARGE_BYTES = 20e6
LARGE_SECONDS = 84.0
"""About what a table takes on the slow line."""


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
