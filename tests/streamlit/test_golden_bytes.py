"""The fixed bytes of acks and heartbeat, decoded with the protobuf descriptors of the installed Streamlit."""

from __future__ import annotations

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from support import known


def _read(data: bytes) -> ForwardMsg:
    message = ForwardMsg()
    message.ParseFromString(data)
    return message


def test_the_compatible_ack_is_an_ack_from_1_55_on_and_an_empty_session_event_in_older_versions(version) -> None:
    message = _read(known.COMPATIBLE_ACK)
    kind = message.WhichOneof("type")
    if version.acks_natively:
        assert (kind, message.heartbeat_ack) == ("heartbeat_ack", True)
    else:
        assert kind == "session_event"
        assert message.session_event.WhichOneof("type") is None, "the event must be empty"


def test_the_plain_ack_is_an_unknown_field_before_1_55(version) -> None:
    kind = _read(known.PLAIN_ACK).WhichOneof("type")
    assert kind == ("heartbeat_ack" if version.acks_natively else None)


def test_a_heartbeat_has_the_bytes_that_the_sidecar_expects() -> None:
    assert BackMsg(app_heartbeat=True).SerializeToString() == known.HEARTBEAT
