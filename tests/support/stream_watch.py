"""What a page does with its stream socket, noted inside the page, where its user would feel it."""

from __future__ import annotations

from dataclasses import dataclass

from playwright.sync_api import Frame

from support import known

# Keeps the page's stream socket and notes the small messages with their times in milliseconds; the page's own script
# writes and reads them all the same.
SCRIPT = """
(() => {
  const Native = window.WebSocket;
  const watched = (window.watched = { stream: null, opened: [], left: [], sent: [], received: [], largest: 0 });
  const note = async (list, data) => {
    const at = performance.now();
    const bytes = new Uint8Array(data instanceof Blob ? await data.arrayBuffer() : data);
    if (list === watched.received) watched.largest = Math.max(watched.largest, bytes.length);
    if (bytes.length > 16) return;
    list.push({ at, data: Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("") });
  };
  window.WebSocket = class extends Native {
    constructor(url, protocols) {
      super(url, protocols);
      if (!String(url).includes("/_stcore/stream")) return;
      watched.stream = this;
      watched.opened.push({ at: performance.now(), entries: [protocols ?? []].flat() });
      this.addEventListener("message", ({ data }) => note(watched.received, data));
    }
    send(data) {
      if (this === watched.stream) note(watched.sent, data);
      super.send(data);
    }
    close(...why) {
      if (this === watched.stream) watched.left.push(performance.now());
      super.close(...why);
    }
  };
})();
"""

_ACKS = [ack.hex() for ack in known.ACKS]


@dataclass(frozen=True)
class Noted:
    """A message and the page's time of it, in seconds."""

    at: float
    data: bytes


@dataclass(frozen=True)
class Opened:
    """A stream socket that the page has asked for, at what time of the page, in seconds."""

    at: float
    entries: list[str]
    """The subprotocols that it offered: "streamlit", a token, and on a reconnect the id of the session."""


@dataclass(frozen=True)
class Stream:
    """All that was noted since the page was loaded, each list in order."""

    opened: list[Opened]
    left: list[float]
    """When the page's own script has closed one."""
    heartbeats: list[Noted]
    acks: list[Noted]
    largest: int
    """Bytes of the largest message that has come."""

    @classmethod
    def of(cls, frame: Frame) -> Stream:
        watched = frame.evaluate("(({ stream, ...noted }) => noted)(watched)")
        sent, received = (
            [Noted(message["at"] / 1000, bytes.fromhex(message["data"])) for message in watched[key]]
            for key in ("sent", "received")
        )
        return cls(
            [Opened(socket["at"] / 1000, socket["entries"]) for socket in watched["opened"]],
            [at / 1000 for at in watched["left"]],
            [message for message in sent if message.data == known.HEARTBEAT],
            [message for message in received if message.data in known.ACKS],
            watched["largest"],
        )

    def latencies(self) -> list[float]:
        """Seconds that each heartbeat has waited; only sensible where there is one ack a heartbeat.

        An ack names no heartbeat. A server's own comes at once or never, so it belongs to the newest heartbeat; the
        sidecar's may be in place of one that never came, so it belongs to the oldest.
        """
        assert len(self.acks) == len(self.heartbeats), f"{len(self.acks)} acks for {len(self.heartbeats)} heartbeats"
        acked_at: dict[int, float] = {}
        for ack in self.acks:
            waiting = [n for n, sent in enumerate(self.heartbeats) if sent.at <= ack.at and n not in acked_at]
            assert waiting, f"the ack at {ack.at:.3f} s came before a heartbeat: {self.heartbeats}"
            acked_at[waiting[-1 if ack.data == known.PLAIN_ACK else 0]] = ack.at
        return [acked_at[n] - sent.at for n, sent in enumerate(self.heartbeats)]


def wait_for_acks(frame: Frame, count: int, seconds: float = 30.0) -> None:
    """Until the page has got `count` acks in all."""
    frame.wait_for_function(
        "([acks, count]) => watched.received.filter(({ data }) => acks.includes(data)).length >= count",
        arg=[_ACKS, count],
        timeout=seconds * 1000,
    )


def wait_for_heartbeats(frame: Frame, count: int, seconds: float = 30.0) -> None:
    """Until the page has sent `count` heartbeats in all."""
    frame.wait_for_function(
        "([heartbeat, count]) => watched.sent.filter(({ data }) => data === heartbeat).length >= count",
        arg=[known.HEARTBEAT.hex(), count],
        timeout=seconds * 1000,
    )


def wait_for_sockets(frame: Frame, count: int, seconds: float = 30.0) -> None:
    """Until the page has asked for `count` stream sockets in all."""
    frame.wait_for_function("(count) => watched.opened.length >= count", arg=count, timeout=seconds * 1000)


def wait_until_left(frame: Frame, seconds: float = 30.0) -> None:
    """Until the page's own script has closed a stream socket."""
    frame.wait_for_function("watched.left.length > 0", timeout=seconds * 1000)


def wait_until_open(frame: Frame, seconds: float = 30.0) -> None:
    """Until the newest stream socket is open."""
    frame.wait_for_function("watched.stream.readyState === WebSocket.OPEN", timeout=seconds * 1000)


def send_heartbeat(frame: Frame) -> None:
    """Writes a heartbeat on the page's stream socket, as its own script would."""
    frame.evaluate("(bytes) => watched.stream.send(new Uint8Array(bytes))", list(known.HEARTBEAT))
