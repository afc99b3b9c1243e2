"""Over TLS the page is loaded by HTTP/2 and its session uses a secure websocket. Both work as without TLS."""

from __future__ import annotations

import random

from playwright.sync_api import expect
from support import known, stream_watch

HEARTBEATS = 5

# The protocol of each resource of the page, without those from the browser's cache.
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


def _expect_no_errors(app) -> None:
    expect(app.dialogs).to_have_count(0)
    assert len(app.stream.opened) == 1, f"the page reconnected: {app.stream.opened}"
    assert not app.errors, app.errors
    metrics = app.sidecar.metrics()
    assert metrics.value("rejections_total") == 0
    assert metrics.value("handshakes_total", result="accepted") == 1
    assert metrics.value("handshakes_total") == 1


def test_the_page_is_loaded_by_http2_and_its_heartbeats_are_acked(open_page) -> None:
    app = open_page(encrypted=True)
    _expect_http2(app)
    acks = [app.heartbeat() for _ in range(HEARTBEATS)]
    assert set(acks) <= set(known.ACKS)
    app.move_slider("Level")
    app.expect_text("level 11")
    app.expect_text("run 2")
    app.expect_text("end of page")
    assert app.sidecar.metrics().value("acks_total") == HEARTBEATS
    _expect_no_errors(app)


def test_an_upload_and_a_download_pass_byte_for_byte(open_page) -> None:
    app = open_page(encrypted=True)
    # Larger than HTTP/2's flow-control window.
    content = random.Random(3).randbytes(5_000_000)
    app.check_upload_and_download(content)
    _expect_http2(app)
    _expect_no_errors(app)


def test_the_watchdogs_script_is_added_to_a_page_over_http2(open_page) -> None:
    options = ["--watchdog-interval", "1s", "--watchdog-ack-timeout", "20s"]
    app = open_page("--watchdog", "self", *options, encrypted=True)
    _expect_http2(app)
    stream_watch.wait_for_acks(app.frame, 2)
    assert app.sidecar.metrics().value("watchdog_pages_total", result="added") == 1
    _expect_no_errors(app)
