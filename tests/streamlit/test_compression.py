"""Sessions with permessage-deflate: every heartbeat is acked, and both ends can decode every message."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator

import pytest
from support import known
from support.app_client import AppClient, slider_at
from support.streamlit_server import StreamlitServer
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

HEARTBEATS = 30

CONTEXTS = {
    "as-in-chromium": ClientPerMessageDeflateFactory(client_max_window_bits=True),
    "no-takeover": ClientPerMessageDeflateFactory(client_no_context_takeover=True),
    "small-windows": ClientPerMessageDeflateFactory(client_max_window_bits=9, server_max_window_bits=10),
}


@pytest.fixture(scope="module")
def server() -> Iterator[StreamlitServer]:
    running = StreamlitServer(Path(sys.executable), options={"server.enableWebsocketCompression": "true"})
    yield running
    running.stop()


def open_client(address: str, context: str = "as-in-chromium", **options) -> AppClient:
    client = AppClient(address, extensions=[CONTEXTS[context]], **options)
    assert client.extensions == ["permessage-deflate"], "compression was not negotiated"
    return client


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_heartbeat_is_acked_and_every_message_is_decoded(sidecar, version, context) -> None:
    acks: list[bytes] = []
    with open_client(sidecar.address, context) as client:
        run = client.run()
        for beat in range(HEARTBEATS):
            client.heartbeat()
            # The native acks are compressed, so the sidecar does not see them: the page gets both.
            acks += [client.ack() for _ in range(2 if version.acks_natively else 1)]
            if beat % 10 == 9:
                run = client.run([slider_at(run, "Level", beat)])
                assert f"level {beat}" in run.texts
                acks += run.acks
        acks += client.run().acks
        metrics = sidecar.metrics()
    assert acks.count(known.COMPATIBLE_ACK) == HEARTBEATS
    assert acks.count(known.PLAIN_ACK) == (HEARTBEATS if version.acks_natively else 0)
    assert metrics.value("heartbeats_total") == HEARTBEATS
    assert metrics.value("acks_total", origin="sidecar") == HEARTBEATS
    assert metrics.value("upstream_acks_natively") == version.acks_natively
    assert metrics.value("native_acks_missed_total") == 0
    assert metrics.value("sessions_unparsable_total") == 0


def test_a_frozen_server_gets_no_ack(server, start_sidecar, version) -> None:
    sidecar = start_sidecar(HEARTBEAT_STALL_AFTER="1s")
    with open_client(sidecar.address) as client:
        client.run()
        with server.frozen():
            client.heartbeat()
            metrics = sidecar.wait_for_metrics(lambda m: m.value("acks_withheld_total", reason="upstream_stalled") >= 1)
            assert metrics.value("acks_total") == 0, "an ack was counted while the server was frozen"
            with pytest.raises(TimeoutError):
                client.receive(seconds=0)
        assert client.ack() in known.ACKS


def test_an_uncompressed_session_next_to_a_compressed_one_gets_one_ack_per_heartbeat(sidecar, version) -> None:
    with open_client(sidecar.address) as compressed:
        compressed.run()
        with AppClient(sidecar.address) as client:
            client.heartbeat()
            assert client.ack() == version.ack
            assert client.run().acks == []


def test_a_reconnect_takes_over_its_session(sidecar) -> None:
    with open_client(sidecar.address, entries=["xsrf"]) as old:
        first = old.run()
        with open_client(sidecar.address, entries=["xsrf", first.session_id]) as new:
            assert "run 2" in new.run().texts
            with pytest.raises(ConnectionClosed):
                old.receive(0)
    assert sidecar.metrics().value("takeovers_total", result="closed") == 1
