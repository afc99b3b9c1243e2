"""A session through the sidecar: the script runs, widgets rerun it, a reconnect keeps it, an end is announced."""

from __future__ import annotations

import re
import signal
from collections import Counter

import pytest
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from support import http
from support.app_client import AppClient, Frame, slider_at
from websockets.exceptions import ConnectionClosed

DELTAS = 4000
HEARTBEAT_EVERY = 100
MAX_WAITING = 8
"""Heartbeats that a session may leave unanswered; the sidecar lets more of them share an ack."""


def test_the_first_run_tells_the_version_and_ends(sidecar, version) -> None:
    with AppClient(sidecar.address) as client:
        assert client.subprotocol == "streamlit"
        run = client.run()
    assert run.new_session.initialize.environment_info.streamlit_version == version.name
    assert run.texts == ["level 10", "run 1", "end of page"]
    assert run.frames[-2].message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY


def test_a_moved_slider_reruns_the_script_with_its_value(sidecar) -> None:
    with AppClient(sidecar.address) as client:
        first = client.run()
        second = client.run([slider_at(first, "Level", 42)])
    assert second.texts == ["level 42", "run 2", "end of page"]


def test_a_rerun_in_full_flow_loses_and_duplicates_nothing(server, start_sidecar, version) -> None:
    # Time for the busiest server: this test is about order and number, not about speed.
    sidecar = start_sidecar(HEARTBEAT_NATIVE_DEADLINE="50s", HEARTBEAT_STALL_AFTER="60s")
    with AppClient(server.address) as client:
        direct = client.run([slider_at(client.run(), "Deltas", DELTAS)])

    seen: Counter[str] = Counter()
    with AppClient(sidecar.address) as client:

        def heartbeat_now_and_then(frame: Frame) -> None:
            seen["acks"] += frame.is_ack
            seen["deltas"] += frame.kind == "delta"
            due = frame.kind == "delta" and seen["deltas"] % HEARTBEAT_EVERY == 0
            if due and seen["heartbeats"] - seen["acks"] < MAX_WAITING:
                client.heartbeat()
                seen["heartbeats"] += 1

        client.start_run([slider_at(client.run(), "Deltas", DELTAS)])
        through = client.finish_run(heartbeat_now_and_then)
        late = [client.ack() for _ in range(seen["heartbeats"] - seen["acks"])]
        metrics = sidecar.metrics()

    assert through.texts == ["level 10", "run 2", *(f"delta {n}" for n in range(DELTAS)), "end of page"]
    assert [d.delta.SerializeToString() for d in through.deltas] == [d.delta.SerializeToString() for d in direct.deltas]
    assert [f.kind for f in through.frames if not f.is_ack] == [f.kind for f in direct.frames]
    assert seen["heartbeats"] >= MAX_WAITING, "the run was to be full of heartbeats"
    assert set(through.acks + late) == {version.ack}
    assert metrics.value("heartbeats_total") == seen["heartbeats"]
    assert metrics.value("acks_total", origin=version.origin) == seen["heartbeats"]
    assert metrics.value("acks_total", origin=version.other_origin) == 0


def test_after_a_reconnect_the_session_lives_on_and_its_heartbeats_are_acked(sidecar, version) -> None:
    with AppClient(sidecar.address, entries=["xsrf"]) as client:
        first = client.run()
    with AppClient(sidecar.address, entries=["xsrf", first.session_id]) as client:
        assert client.subprotocol == "streamlit"
        client.heartbeat()
        assert client.ack() == version.ack, "no new_session has come on this socket: the first message is the ack"
        second = client.run()
    assert second.session_id == first.session_id
    assert "run 2" in second.texts, f"the session's state is gone: {second.texts}"


def test_sigterm_closes_the_websocket_with_1001_and_ends_with_0(sidecar) -> None:
    with AppClient(sidecar.address) as client:
        client.run()
        sidecar.process.signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            client.receive_until(lambda _: False)
        assert closed.value.rcvd is not None, "the connection ended without a Close frame"
        assert closed.value.rcvd.code == 1001
    assert sidecar.process.wait(seconds=15) == 0, sidecar.process.transcript()


def test_the_servers_refusal_of_a_foreign_origin_passes(server, sidecar) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Origin": "http://elsewhere.example",
    }
    direct, through = (http.get(address, "/_stcore/stream", upgrade) for address in (server.address, sidecar.address))
    assert direct.status == 403
    assert (through.status, through.body) == (direct.status, direct.body)


def test_the_log_holds_no_token_no_cookie_and_no_query(start_sidecar) -> None:
    sidecar = start_sidecar("--log-level", "trace")
    secrets = {"subprotocol": "2|xsrf-d41d8cd98f", "cookie": "cookie-5f3759df", "query": "query-0451", "file": "q-8191"}
    headers = {"Cookie": f"_streamlit_user={secrets['cookie']}"}
    with AppClient(
        sidecar.address, entries=[secrets["subprotocol"]], headers=headers, query=f"?token={secrets['query']}"
    ) as client:
        session_id = client.run().session_id
        client.heartbeat()
        client.ack()
    with AppClient(sidecar.address, entries=[secrets["subprotocol"], session_id], headers=headers) as client:
        client.heartbeat()
        client.ack()
    http.get(sidecar.address, f"/_stcore/health?token={secrets['file']}", headers)
    # The line of a session's end is the last to come; stopping the sidecar makes sure that all are written.
    sidecar.process.signal(signal.SIGTERM)
    sidecar.process.wait(seconds=15)
    log = "\n".join(sidecar.process.lines)
    assert re.search(r"heartbeats", log), f"no line tells of a session; {sidecar.process.transcript()}"
    leaked = [name for name, secret in {**secrets, "session id": session_id}.items() if secret in log]
    assert not leaked, f"the log holds the {leaked}:\n{log}"
