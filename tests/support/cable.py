"""Carries IP packets between two kernel interfaces, with configurable delay, loss and rate.

Invariant: packets are lost or delayed, never changed; those of one server stay in order until its line changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from dataclasses import dataclass

# From <linux/if_tun.h>: IP packets without a header of the interface.
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_LARGEST_PACKET_BYTES = 65535
_MAX_BATCH = 64
"""Packets of one direction before the other direction is served."""


@dataclass(frozen=True)
class Line:
    """Conditions for the packets of one direction; by default they pass unhindered."""

    delay: float = 0.0
    """Seconds of one-way delay."""
    loss: float = 0.0
    """The share of packets that are lost, 0 to 1."""
    rate: float | None = None
    """Bits per second for each server port; ports do not share it. `None` is unlimited."""
    buffer: float = 0.25
    """Seconds that a packet may queue if there is a rate; packets that would wait longer are lost."""


@dataclass(frozen=True, order=True)
class _QueuedPacket:
    arrives_at: float
    number: int
    packet: bytes


class Direction:
    """Packets from one interface to the other. The line may be changed at any time, from any thread."""

    def __init__(self, source: int, sink: int, *, outward: bool) -> None:
        self.line = Line()
        self.dropped_ports: frozenset[int] = frozenset()
        """TCP ports whose packets are lost, as source or destination."""
        self.passed = self.lost = self._number = 0
        self.source, self._sink = source, sink
        self._outward = outward
        self._random = random.Random(outward)
        self._queue: list[_QueuedPacket] = []
        """A heap, ordered by arrival."""
        self._free_at: dict[int, float] = {}
        """When the queue of each server port will be empty."""

    @property
    def next_arrival(self) -> float | None:
        return self._queue[0].arrives_at if self._queue else None

    def read_packets(self) -> None:
        """Reads and queues packets from the source interface."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_MAX_BATCH):
                self._enqueue(os.read(self.source, _LARGEST_PACKET_BYTES))
                self.deliver()

    def _enqueue(self, packet: bytes) -> None:
        line, now = self.line, time.monotonic()
        header = (packet[0] & 0x0F) * 4
        ports = struct.unpack_from("!HH", packet, header)
        server = ports[0 if self._outward else 1]
        sent_at = now if line.rate is None else max(now, self._free_at.get(server, 0.0))
        is_lost = self._random.random() < line.loss or not self.dropped_ports.isdisjoint(ports)
        if is_lost or sent_at - now > line.buffer:
            self.lost += 1
            return
        if line.rate is not None:
            sent_at = self._free_at[server] = sent_at + len(packet) * 8 / line.rate
        heapq.heappush(self._queue, _QueuedPacket(sent_at + line.delay, self._number, packet))
        self._number += 1

    def deliver(self) -> None:
        """Writes the packets whose delay is over."""
        while self._queue and self._queue[0].arrives_at <= time.monotonic():
            # An error means that the interface is being removed.
            with contextlib.suppress(OSError):
                os.write(self._sink, heapq.heappop(self._queue).packet)
            self.passed += 1


class Cable:
    """Connects two interfaces of this process's network namespace. Servers are at the near one.

    It replaces the kernel's `netem`, which some kernels lack.
    """

    def __init__(self, near: str, far: str) -> None:
        ends = [_interface(name) for name in (near, far)]
        self.outward, self.inward = Direction(*ends, outward=True), Direction(*reversed(ends), outward=False)
        self.directions = (self.outward, self.inward)
        self._ends = ends
        self._stop, self._stopping = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="cable", daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        while True:
            arrivals = [at for direction in self.directions if (at := direction.next_arrival) is not None]
            timeout = max(0.0, min(arrivals) - time.monotonic()) if arrivals else None
            ready = select.select([*self._ends, self._stop], [], [], timeout)[0]
            if self._stop in ready:
                return
            for direction in self.directions:
                if direction.source in ready:
                    direction.read_packets()
                direction.deliver()

    def stop(self) -> None:
        """Removes both interfaces, in whichever namespace they are."""
        os.close(self._stopping)
        self._thread.join()
        for descriptor in (*self._ends, self._stop):
            os.close(descriptor)


def _interface(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor
