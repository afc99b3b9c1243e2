"""The browser's half of Streamlit's protocol, built on the protobuf classes of the installed Streamlit."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Callable, Mapping, Sequence

from google.protobuf.message import Message
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.extensions import ClientExtensionFactory
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from support import known

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Frame:
    """One binary message of the server: its bytes and the decoded message."""

    data: bytes
    message: Message = field(repr=False)

    @property
    def kind(self) -> str | None:
        return self.message.WhichOneof("type")

    @property
    def is_ack(self) -> bool:
        return self.data in known.ACKS


@dataclass(frozen=True)
class Run:
    """The frames of one script run, from `new_session` to the status that the script no longer runs."""

    frames: list[Frame]

    @property
    def acks(self) -> list[bytes]:
        return [frame.data for frame in self.frames if frame.is_ack]

    @property
    def new_session(self) -> Message:
        found = [frame.message.new_session for frame in self.frames if frame.kind == "new_session"]
        assert len(found) == 1, f"expected one new_session, saw {[frame.kind for frame in self.frames]}"
        return found[0]

    @property
    def session_id(self) -> str:
        return self.new_session.initialize.session_id

    @property
    def deltas(self) -> list[Message]:
        return [frame.message for frame in self.frames if frame.kind == "delta"]

    def elements(self, kind: str) -> list[Message]:
        elements = [message.delta.new_element for message in self.deltas]
        return [getattr(element, kind) for element in elements if element.WhichOneof("type") == kind]

    def element(self, kind: str, label: str) -> Message:
        found = [element for element in self.elements(kind) if element.label == label]
        assert len(found) == 1, f"expected one {kind} {label!r}, saw {[e.label for e in self.elements(kind)]}"
        return found[0]

    @property
    def texts(self) -> list[str]:
        return [element.body for element in self.elements("text")]


class AppClient:
    """One websocket to the app at `address` ("host:port"), opened as the page's own script would open it."""

    def __init__(
        self,
        address: str,
        *,
        entries: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        base: str = "",
        query: str = "",
        extensions: Sequence[ClientExtensionFactory] = (),
    ) -> None:
        """`base` is the app's base path. `entries` follow "streamlit" in the subprotocols: XSRF token, session id."""
        self._stack = contextlib.ExitStack()
        opening = connect(
            f"ws://{address}{base}/_stcore/stream{query}",
            origin=f"http://{address}",  # type: ignore[arg-type]
            subprotocols=[Subprotocol(entry) for entry in ("streamlit", *entries)],
            additional_headers=dict(headers or {}),
            compression=None,
            extensions=list(extensions) or None,
            proxy=None,
            max_size=None,
            ping_interval=None,
        )
        self._socket = self._stack.enter_context(opening)

    def __enter__(self) -> AppClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    @property
    def subprotocol(self) -> str | None:
        return self._socket.subprotocol

    @property
    def extensions(self) -> list[str]:
        """The negotiated websocket extensions."""
        return [extension.name for extension in self._socket.protocol.extensions]

    def send(self, **oneof: object) -> None:
        self._socket.send(BackMsg(**oneof).SerializeToString())

    def heartbeat(self) -> None:
        data = BackMsg(app_heartbeat=True).SerializeToString()
        assert data == known.HEARTBEAT, f"this Streamlit writes a heartbeat as {data.hex()}"
        self._socket.send(data)

    def receive(self, seconds: float = TIMEOUT_SECONDS) -> Frame:
        """The next message. Raises `TimeoutError` if none arrives, `ConnectionClosed` after a close."""
        data = self._socket.recv(timeout=seconds, decode=False)
        message = ForwardMsg()
        message.ParseFromString(data)
        return Frame(data, message)

    def receive_until(self, is_last: Callable[[Frame], bool]) -> list[Frame]:
        """All messages up to and including the first that satisfies `is_last`."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        frames: list[Frame] = []
        while not frames or not is_last(frames[-1]):
            try:
                frames.append(self.receive(max(0.0, deadline - time.monotonic())))
            except TimeoutError:
                last = [frame.kind for frame in frames[-10:]]
                raise AssertionError(f"not seen in {TIMEOUT_SECONDS} s; received {len(frames)}, last {last}") from None
        return frames

    def ack(self) -> bytes:
        """The next message, which must be an ack."""
        try:
            frame = self.receive()
        except TimeoutError:
            raise AssertionError(f"no ack within {TIMEOUT_SECONDS} s") from None
        assert frame.is_ack, f"expected an ack, got a {frame.kind}: {frame.data[:60].hex()}"
        return frame.data

    def start_run(self, widgets: Sequence[WidgetState] = ()) -> None:
        message = BackMsg()
        message.rerun_script.query_string = ""
        message.rerun_script.widget_states.widgets.extend(widgets)
        self._socket.send(message.SerializeToString())

    def finish_run(self, on_frame: Callable[[Frame], None] = lambda _: None) -> Run:
        """Reads to the end of the started script run; calls `on_frame` with each message."""

        def finished(frame: Frame) -> bool:
            on_frame(frame)
            return frame.kind == "session_status_changed" and not frame.message.session_status_changed.script_is_running

        return Run(self.receive_until(finished))

    def run(self, widgets: Sequence[WidgetState] = ()) -> Run:
        self.start_run(widgets)
        return self.finish_run()


def slider_at(run: Run, label: str, value: float) -> WidgetState:
    """The widget state that the page sends after the user moved the slider `label` to `value`."""
    state = WidgetState(id=run.element("slider", label).id)
    state.double_array_value.data.append(value)
    return state
