"""A session through the sidecar: the first run, reruns by widgets, a reconnect, a close by the sidecar."""

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
MAX_PENDING = 8
"""Pending heartbeats that each get their own ack; above this they share one."""


def test_the_first_run_names_the_version_and_finishes(sidecar, version) -> None:
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


def test_a_rerun_with_thousands_of_messages_loses_and_duplicates_none(server, start_sidecar, version) -> None:
    # Long deadlines for a busy machine: this test checks order and number, not speed.
    sidecar = start_sidecar(HEARTBEAT_NATIVE_DEADLINE="50s", HEARTBEAT_STALL_AFTER="60s")
    with AppClient(server.address) as client:
        direct = client.run([slider_at(client.run(), "Deltas", DELTAS)])

    seen: Counter[str] = Counter()
    with AppClient(sidecar.address) as client:

        def send_due_heartbeat(frame: Frame) -> None:
            seen["acks"] += frame.is_ack
            seen["deltas"] += frame.kind == "delta"
            due = frame.kind == "delta" and seen["deltas"] % HEARTBEAT_EVERY == 0
            if due and seen["heartbeats"] - seen["acks"] < MAX_PENDING:
                client.heartbeat()
                seen["heartbeats"] += 1

        client.start_run([slider_at(client.run(), "Deltas", DELTAS)])
        through = client.finish_run(send_due_heartbeat)
        late = [client.ack() for _ in range(seen["heartbeats"] - seen["acks"])]
        metrics = sidecar.metrics()

    assert through.texts == ["level 10", "run 2", *(f"delta {n}" for n in range(DELTAS)), "end of page"]
    assert [d.delta.SerializeToString() for d in through.deltas] == [d.delta.SerializeToString() for d in direct.deltas]
    assert [f.kind for f in through.frames if not f.is_ack] == [f.kind for f in direct.frames]
    assert seen["heartbeats"] >= MAX_PENDING, "too few heartbeats during the run"
    assert set(through.acks + late) == {version.ack}
    assert metrics.value("heartbeats_total") == seen["heartbeats"]
    assert metrics.value("acks_total", origin=version.origin) == seen["heartbeats"]
    assert metrics.value("acks_total", origin=version.other_origin) == 0


def test_a_reconnect_keeps_the_session_and_its_heartbeats_are_acked(sidecar, version) -> None:
    with AppClient(sidecar.address, entries=["xsrf"]) as client:
        first = client.run()
    with AppClient(sidecar.address, entries=["xsrf", first.session_id]) as client:
        assert client.subprotocol == "streamlit"
        client.heartbeat()
        assert client.ack() == version.ack, "the first message must be the ack: a reconnect gets no new_session"
        second = client.run()
    assert second.session_id == first.session_id
    assert "run 2" in second.texts, f"the session state is lost: {second.texts}"


def test_sigterm_closes_the_websocket_with_1001_and_exits_with_0(sidecar) -> None:
    with AppClient(sidecar.address) as client:
        client.run()
        sidecar.process.signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            client.receive_until(lambda _: False)
        assert closed.value.rcvd is not None, "the connection ended without a close frame"
        assert closed.value.rcvd.code == 1001
    assert sidecar.process.wait(seconds=15) == 0, sidecar.process.transcript()


def test_the_servers_rejection_of_a_foreign_origin_reaches_the_browser(server, sidecar) -> None:
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


def test_the_log_contains_no_token_cookie_or_query(start_sidecar) -> None:
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
    # A session's line is written at its end. Stopping the sidecar flushes all lines.
    sidecar.process.signal(signal.SIGTERM)
    sidecar.process.wait(seconds=15)
    log = "\n".join(sidecar.process.lines)
    assert re.search(r"heartbeats", log), f"no log line about a session; {sidecar.process.transcript()}"
    leaked = [name for name, secret in {**secrets, "session id": session_id}.items() if secret in log]
    assert not leaked, f"the log contains the {leaked}:\n{log}"
