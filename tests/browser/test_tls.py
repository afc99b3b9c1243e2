"""Over TLS the page comes by HTTP/2 and its session by a secure websocket, and it works as it does in the clear."""

from __future__ import annotations

import random

from playwright.sync_api import expect
from support import known, stream_watch

HEARTBEATS = 5

# What each part of the page came by; what the browser had kept came by nothing.
PROTOCOLS = """
() => ["navigation", "resource"]
  .flatMap((type) => performance.getEntriesByType(type))
  .filter((entry) => entry.name.startsWith(location.origin) && entry.nextHopProtocol)
  .map((entry) => entry.nextHopProtocol)
"""


def _expect_http2(app) -> None:
    protocols = app.page.evaluate(PROTOCOLS)
    assert set(protocols) == {"h2"} and len(protocols) > 5, protocols
    assert app.frame.evaluate("watched.stream.url").startswith("wss://")


def _expect_untroubled(app) -> None:
    expect(app.dialogs).to_have_count(0)
    assert len(app.stream.opened) == 1, f"the page has connected again: {app.stream.opened}"
    assert not app.errors, app.errors
    metrics = app.sidecar.metrics()
    assert metrics.value("http_rejected_total") == 0
    assert metrics.value("handshakes_total", result="accepted") == 1
    assert metrics.value("handshakes_total") == 1


def test_the_page_comes_by_http2_and_its_heartbeats_are_acked(open_page) -> None:
    app = open_page(encrypted=True)
    _expect_http2(app)
    acks = [app.heartbeat() for _ in range(HEARTBEATS)]
    assert set(acks) <= set(known.ACKS)
    app.move_slider("Level")
    app.expect_text("level 11")
    app.expect_text("run 2")
    app.expect_text("end of page")
    assert app.sidecar.metrics().value("acks_total") == HEARTBEATS
    _expect_untroubled(app)


def test_files_go_up_and_down_byte_for_byte(open_page) -> None:
    app = open_page(encrypted=True)
    # More than HTTP/2 lets through before the app has taken some.
    content = random.Random(3).randbytes(5_000_000)
    app.pass_files(content)
    _expect_http2(app)
    _expect_untroubled(app)


def test_the_watchdogs_script_comes_by_http2_too(open_page) -> None:
    unhurried = ["--watchdog-interval", "1s", "--watchdog-ack-timeout", "20s"]
    app = open_page("--watchdog", "self", *unhurried, encrypted=True)
    _expect_http2(app)
    stream_watch.wait_for_acks(app.frame, 2)
    assert app.sidecar.metrics().value("watchdog_pages_total", result="added") == 1
    _expect_untroubled(app)
