"""Each heartbeat is acked once, by the expected side, and only while the server runs."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from support.app_client import AppClient

HEARTBEATS = 20


def test_every_heartbeat_is_acked_once_by_the_expected_side(sidecar, version) -> None:
    with AppClient(sidecar.address) as client:
        client.run()
        for _ in range(HEARTBEATS):
            client.heartbeat()
            assert client.ack() == version.ack
        # A duplicate ack would arrive before the end of another run.
        assert client.run().acks == []
        metrics = sidecar.metrics()
    assert metrics.value("heartbeats_total", upstream="default") == HEARTBEATS
    assert metrics.value("acks_total", upstream="default", origin=version.origin) == HEARTBEATS
    assert metrics.value("acks_total", upstream="default", origin=version.other_origin) == 0
    assert metrics.value("upstream_acks_natively", upstream="default") == version.acks_natively
    assert metrics.value("ack_latency_seconds_count", origin=version.origin) == HEARTBEATS
    for reason in ("upstream_stalled", "upstream_closed", "policy"):
        assert metrics.value("acks_withheld_total", reason=reason) == 0


def test_a_frozen_server_gets_no_acks_and_a_resumed_one_does(server, start_sidecar, version) -> None:
    sidecar = start_sidecar(HEARTBEAT_STALL_AFTER="1s", HEARTBEAT_NATIVE_DEADLINE="500ms")
    with AppClient(sidecar.address) as client:
        client.run()
        client.heartbeat()
        assert client.ack() == version.ack
        with server.frozen():
            client.heartbeat()
            metrics = sidecar.wait_for_metrics(lambda m: m.value("acks_withheld_total", reason="upstream_stalled") >= 1)
            assert metrics.value("acks_total") == 1, "an ack was counted while the server was frozen"
            with pytest.raises(TimeoutError):
                client.receive(seconds=0)
        client.ack()
        client.heartbeat()
        client.ack()
        # The late heartbeat may get both a native ack and the sidecar's. That is harmless.
        acks = sidecar.wait_for_metrics(lambda m: m.value("acks_total") >= 3).value("acks_total")
    assert acks <= (4 if version.acks_natively else 3), f"{acks} acks for 3 heartbeats"


def test_mode_forward_leaves_every_heartbeat_to_the_server(start_sidecar, version) -> None:
    sidecar = start_sidecar("--heartbeat-mode", "forward")
    with AppClient(sidecar.address) as client:
        client.run()
        client.heartbeat()
        acks = [client.ack()] if version.acks_natively else []
        acks += client.run().acks
        metrics = sidecar.metrics()
    assert acks == ([version.ack] if version.acks_natively else [])
    assert metrics.value("heartbeats_total") == 1
    assert metrics.value("acks_total", origin="sidecar") == 0


def test_mode_answer_acks_in_place_of_a_server_of_any_version(start_sidecar) -> None:
    sidecar = start_sidecar("--heartbeat-mode", "answer", "--heartbeat-ack", "plain")
    with AppClient(sidecar.address) as client:
        client.heartbeat()
        assert client.ack() == bytes.fromhex("d00101")
        assert client.run().acks == []
        metrics = sidecar.metrics()
    assert metrics.value("acks_total", origin="sidecar") == 1
    assert metrics.value("acks_total", origin="upstream") == 0


def test_the_metrics_of_a_used_sidecar_pass_promtool(sidecar) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: install Debian's package prometheus"
    with AppClient(sidecar.address) as client:
        client.run()
        client.heartbeat()
        client.ack()
        text = sidecar.metrics_text()
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0 and not checked.stdout + checked.stderr, checked.stdout + checked.stderr
