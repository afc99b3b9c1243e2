"""The watchdog does in Firefox and WebKitGTK what it does in Chromium."""

from __future__ import annotations

import time

from support.network import Network

INTERVAL_SECONDS, ACK_TIMEOUT_SECONDS = 10.0, 5.0
"""The watchdog's default settings."""
NOTICED_WITHIN = INTERVAL_SECONDS + ACK_TIMEOUT_SECONDS + 1
"""Seconds from the start of an outage."""
OUTAGE_SECONDS = 20.0
CONNECTED_WITHIN = 20.0
"""Seconds from its end."""


def test_the_watchdogs_heartbeats_are_acked_and_have_no_visible_effect(open_app) -> None:
    page = open_app("--watchdog", "self", "--watchdog-interval", "1s")
    assert page.tab.call("() => document.querySelector('script[src*=watchdog]').dataset.mode") == "self"
    page.wait_for_acks(3)
    for kind in ("click", "level", "form", "chat"):
        answer = page.act(kind)
        page.tab.wait_for_text(answer)
        assert page.executed(answer) == 1
    assert page.dialogs == 0
    metrics = page.sidecar.metrics()
    assert metrics.value("watchdog_pages_total", result="added") == 1
    assert metrics.value("handshakes_total") == 1


def test_without_resumption_a_silent_loss_is_noticed_and_the_page_reconnects_with_its_state(
    open_app, network: Network, request
) -> None:
    page = open_app("--watchdog", "self", "--resume-enabled", "false")
    page.tab.wait_for_text(page.act("click"))
    page.wait_for_acks(1)
    session = page.session

    network.drop()
    lost = time.time()
    page.wait_until_connecting(NOTICED_WITHIN)
    time.sleep(max(0.0, lost + OUTAGE_SECONDS - time.time()))
    noticed = page.seconds_to_notice(lost)
    network.restore()
    restored = time.time()
    page.wait_until_connected(CONNECTED_WITHIN)
    connected = time.time() - restored
    page.tab.wait_for_text(page.act("click"))

    assert page.session == session
    assert page.dialogs == 0
    metrics = page.sidecar.metrics()
    assert metrics.value("reconnects_total", cause="watchdog") == 1
    assert metrics.value("reconnects_total", cause="other") == 0
    request.node.user_properties.append(
        ("measured", f"{request.node.name}: noticed after {noticed:.1f} s, connected again after {connected:.1f} s")
    )
