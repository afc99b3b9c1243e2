"""Carries IP packets between two interfaces of the kernel, as well or as badly as it is told.

Law: packets are lost and late, never changed; those of one server stay in order while its line stays as it is.
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

# From <linux/if_tun.h>: IP packets without a header of the interface's own.
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_LARGEST_PACKET = 65535
_PACKETS_IN_A_ROW = 64
"""Of one direction, before the other has its turn."""


@dataclass(frozen=True)
class Line:
    """What happens to the packets of one direction; by default they pass as they come."""

    delay: float = 0.0
    """Seconds on the way."""
    loss: float = 0.0
    """The share of packets that never arrive, 1 for all."""
    rate: float | None = None
    """Bits per second, for each port of a server: what one of them sends is in no other's way."""
    buffer: float = 0.25
    """Seconds that a packet may wait for its turn, where there is a rate; what would wait longer is lost."""


@dataclass(frozen=True, order=True)
class _Arrival:
    at: float
    number: int
    packet: bytes


class Direction:
    """From one interface to the other. The line may be changed at any time, from any thread."""

    def __init__(self, source: int, sink: int, *, outward: bool) -> None:
        self.line = Line()
        self.forgotten: frozenset[int] = frozenset()
        """TCP ports whose packets are lost, from either and to either."""
        self.passed = self.lost = self._number = 0
        self.source, self._sink = source, sink
        self._outward = outward
        self._random = random.Random(outward)
        self._under_way: list[_Arrival] = []
        """A heap."""
        self._free_at: dict[int, float] = {}
        """When each server's line has sent all that it has taken."""

    @property
    def next_arrival(self) -> float | None:
        return self._under_way[0].at if self._under_way else None

    def take_in(self) -> None:
        """Reads what the interface has sent."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_PACKETS_IN_A_ROW):
                self._take(os.read(self.source, _LARGEST_PACKET))
                self.deliver()

    def _take(self, packet: bytes) -> None:
        line, now = self.line, time.monotonic()
        header = (packet[0] & 0x0F) * 4
        ports = struct.unpack_from("!HH", packet, header)
        server = ports[0 if self._outward else 1]
        sent_at = now if line.rate is None else max(now, self._free_at.get(server, 0.0))
        is_lost = self._random.random() < line.loss or not self.forgotten.isdisjoint(ports)
        if is_lost or sent_at - now > line.buffer:
            self.lost += 1
            return
        if line.rate is not None:
            sent_at = self._free_at[server] = sent_at + len(packet) * 8 / line.rate
        heapq.heappush(self._under_way, _Arrival(sent_at + line.delay, self._number, packet))
        self._number += 1

    def deliver(self) -> None:
        """Writes what has arrived by now."""
        while self._under_way and self._under_way[0].at <= time.monotonic():
            # Errors are an interface that is going away.
            with contextlib.suppress(OSError):
                os.write(self._sink, heapq.heappop(self._under_way).packet)
            self.passed += 1


class Cable:
    """Two interfaces of this process's network namespace, and what is between them; servers are at the near one.

    Userspace does what the kernel's `netem` would, for kernels without it.
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
            patience = max(0.0, min(arrivals) - time.monotonic()) if arrivals else None
            ready = select.select([*self._ends, self._stop], [], [], patience)[0]
            if self._stop in ready:
                return
            for direction in self.directions:
                if direction.source in ready:
                    direction.take_in()
                direction.deliver()

    def stop(self) -> None:
        """The interfaces go, wherever they are."""
        os.close(self._stopping)
        self._thread.join()
        for descriptor in (*self._ends, self._stop):
            os.close(descriptor)


def _interface(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor
