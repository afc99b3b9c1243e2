"""Records inside a page what happens on its stream socket."""

from __future__ import annotations

from dataclasses import dataclass

from playwright.sync_api import Frame

from support import known

# Keeps the page's newest stream socket and records small messages with their times in milliseconds. The page's own
# script is not affected.
SCRIPT = """
(() => {
  const Native = window.WebSocket;
  const watched = (window.watched = { stream: null, opened: [], closed: [], sent: [], received: [], largest: 0 });
  const record = async (list, data) => {
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
      this.addEventListener("message", ({ data }) => record(watched.received, data));
    }
    send(data) {
      if (this === watched.stream) record(watched.sent, data);
      super.send(data);
    }
    close(...reason) {
      if (this === watched.stream) watched.closed.push(performance.now());
      super.close(...reason);
    }
  };
})();
"""

_ACKS = [ack.hex() for ack in known.ACKS]


@dataclass(frozen=True)
class TimedMessage:
    """A message and its time on the page's clock, in seconds."""

    at: float
    data: bytes


@dataclass(frozen=True)
class OpenedSocket:
    """A stream socket that the page opened, with the time on the page's clock, in seconds."""

    at: float
    entries: list[str]
    """The offered subprotocols: "streamlit", a token, and on a reconnect the session id."""


@dataclass(frozen=True)
class Stream:
    """Everything recorded since the page was loaded, each list in order."""

    opened: list[OpenedSocket]
    closed: list[float]
    """When the page's own script closed a socket."""
    heartbeats: list[TimedMessage]
    acks: list[TimedMessage]
    largest: int
    """Bytes of the largest received message."""

    @classmethod
    def of(cls, frame: Frame) -> Stream:
        watched = frame.evaluate("(({ stream, ...recorded }) => recorded)(watched)")
        sent, received = (
            [TimedMessage(message["at"] / 1000, bytes.fromhex(message["data"])) for message in watched[key]]
            for key in ("sent", "received")
        )
        return cls(
            [OpenedSocket(socket["at"] / 1000, socket["entries"]) for socket in watched["opened"]],
            [at / 1000 for at in watched["closed"]],
            [message for message in sent if message.data == known.HEARTBEAT],
            [message for message in received if message.data in known.ACKS],
            watched["largest"],
        )

    def latencies(self) -> list[float]:
        """Seconds from each heartbeat to its ack. Needs exactly one ack per heartbeat.

        An ack carries no id. A native ack comes at once or never, so it belongs to the newest heartbeat. The sidecar's
        ack may replace a lost native one, so it belongs to the oldest unacked heartbeat.
        """
        assert len(self.acks) == len(self.heartbeats), f"{len(self.acks)} acks for {len(self.heartbeats)} heartbeats"
        acked_at: dict[int, float] = {}
        for ack in self.acks:
            waiting = [n for n, sent in enumerate(self.heartbeats) if sent.at <= ack.at and n not in acked_at]
            assert waiting, f"the ack at {ack.at:.3f} s came before a heartbeat: {self.heartbeats}"
            acked_at[waiting[-1 if ack.data == known.PLAIN_ACK else 0]] = ack.at
        return [acked_at[n] - sent.at for n, sent in enumerate(self.heartbeats)]


def wait_for_acks(frame: Frame, count: int, seconds: float = 30.0) -> None:
    """Waits until the page has received `count` acks in total."""
    frame.wait_for_function(
        "([acks, count]) => watched.received.filter(({ data }) => acks.includes(data)).length >= count",
        arg=[_ACKS, count],
        timeout=seconds * 1000,
    )


def wait_for_heartbeats(frame: Frame, count: int, seconds: float = 30.0) -> None:
    """Waits until the page has sent `count` heartbeats in total."""
    frame.wait_for_function(
        "([heartbeat, count]) => watched.sent.filter(({ data }) => data === heartbeat).length >= count",
        arg=[known.HEARTBEAT.hex(), count],
        timeout=seconds * 1000,
    )


def wait_for_sockets(frame: Frame, count: int, seconds: float = 30.0) -> None:
    """Waits until the page has opened `count` stream sockets in total."""
    frame.wait_for_function("(count) => watched.opened.length >= count", arg=count, timeout=seconds * 1000)


def wait_until_closed(frame: Frame, seconds: float = 30.0) -> None:
    """Waits until the page's own script has closed a stream socket."""
    frame.wait_for_function("watched.closed.length > 0", timeout=seconds * 1000)


def wait_until_open(frame: Frame, seconds: float = 30.0) -> None:
    """Waits until the newest stream socket is open."""
    frame.wait_for_function("watched.stream.readyState === WebSocket.OPEN", timeout=seconds * 1000)


def send_heartbeat(frame: Frame) -> None:
    """Sends a heartbeat on the page's stream socket, as its own script would."""
    frame.evaluate("(bytes) => watched.stream.send(new Uint8Array(bytes))", list(known.HEARTBEAT))
