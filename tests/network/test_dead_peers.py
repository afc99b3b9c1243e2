"""A peer that vanishes silently is detected within the timeout, and the other side is closed."""

from __future__ import annotations

import os
import socket
import time

import pytest
from conftest import NETWORK
from support.app import environment
from support.cable import Line
from support.metrics import Metrics
from support.network import Network
from support.process import Process
from support.sidecar import Sidecar, binary
from support.streamlit_server import APP, StreamlitServer
from support.version import Version
from visitor import Plan, visitors

TIMEOUT = 6
"""Seconds; whole, because TCP keepalive counts whole seconds."""
MAX_FACTOR = 1.34
"""Detection takes at most this multiple of the timeout; the tests add a second for a busy machine."""
OPTIONS = ("--session-dead-peer-timeout", f"{TIMEOUT}s")

NEWEST = NETWORK[-1]
"""Its server pings every 30 s, so its connections are idle; older servers ping every second."""
BROWSERS = {NEWEST, *[version for version in NETWORK if version.has_short_ping_timeout][:1]}

HANDSHAKE = (
    "GET /_stcore/stream HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def _lost(metrics: Metrics, reason: str) -> bool:
    return metrics.value("peers_lost_total", reason=reason) == 1 and metrics.value("sessions") == 0


@pytest.mark.parametrize("version", sorted(BROWSERS, key=lambda version: version.line), ids=lambda v: v.name)
def test_a_vanished_browser_is_detected_and_its_session_is_closed(
    chromium, host, network, request, version: Version
) -> None:
    with visitors(chromium, host, [Plan(version, options=OPTIONS)], request.node.name) as [visitor]:
        visitor.use()
        sidecar = visitor.page.sidecar
        network.drop()
        metrics = sidecar.wait_for_metrics(lambda metrics: _lost(metrics, "browser_dead"), TIMEOUT * MAX_FACTOR + 1)
        # An app with a short ping timeout has already sent a close frame, which never reached the browser.
        closed = ("upstream", "1000") if version.has_short_ping_timeout else ("sidecar", "1006")
        assert metrics.value("sessions_closed_total", initiator=closed[0], code=closed[1]) == 1
        assert metrics.value("sessions_closed_total") == 1
        network.reset()
        visitor.click_until_answered(60)


def test_a_browser_that_vanishes_after_a_heartbeat_is_detected_in_time(network) -> None:
    app = StreamlitServer(environment(NEWEST.name), APP, {})
    sidecar = Sidecar(app.address, *OPTIONS)
    port = sidecar.address.rpartition(":")[2]
    heartbeats = ["--count", "2", "--interval", f"{TIMEOUT}s", "--timeout", "60s"]
    command = [*network.at_far_end, str(binary()), "probe", f"http://{network.near}:{port}", *heartbeats]
    browser = Process("probe", command, os.environ)
    try:
        browser.wait_for_line("^heartbeat 1: ack", 10)
        # The second heartbeat still arrives; its ack is lost.
        network.shape(Line(loss=1.0), inward=Line())
        sidecar.wait_for_metrics(lambda metrics: metrics.value("heartbeats_total") == 2, TIMEOUT + 2)
        network.drop()
        received = time.monotonic()
        sidecar.wait_for_metrics(lambda metrics: _lost(metrics, "browser_dead"), TIMEOUT * MAX_FACTOR + 1)
        assert time.monotonic() - received > TIMEOUT - 1, "the browser was declared dead too early"
    finally:
        browser.stop()
        sidecar.stop()
        app.stop()


class FarSidecar(Sidecar):
    """A sidecar at the far end of the network; the app is at the near end."""

    def __init__(self, network: Network, app: StreamlitServer) -> None:
        self.command, self.host = network.at_far_end, network.far
        port = app.address.rpartition(":")[2]
        super().__init__(f"{network.near}:{port}", *OPTIONS, "--handshake-timeout", "2s", "--connect-timeout", "2s")


def test_a_vanished_app_is_detected_and_the_browsers_connection_is_reset(network) -> None:
    app = StreamlitServer(environment(NEWEST.name), APP, {})
    sidecar = FarSidecar(network, app)
    try:
        host, port = sidecar.address.split(":")
        with socket.create_connection((host, int(port)), timeout=TIMEOUT * 2) as browser:
            browser.sendall(HANDSHAKE.encode())
            assert browser.recv(65536).startswith(b"HTTP/1.1 101 ")
            network.drop_port(int(app.address.rpartition(":")[2]))
            sidecar.wait_for_metrics(lambda metrics: _lost(metrics, "upstream_dead"), TIMEOUT * MAX_FACTOR + 1)
            with pytest.raises(ConnectionResetError):
                while browser.recv(65536):
                    """Messages that the app sent before it vanished."""
    finally:
        sidecar.stop()
        app.stop()
