"""Carries IP packets between two interfaces of the kernel, as well or as badly as it is told.

Law: packets are lost and late, never changed and never out of order.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
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
    """Bits per second."""
    buffer: float = 0.25
    """Seconds that a packet may wait for its turn, where there is a rate; what would wait longer is lost."""


class Direction:
    """From one interface to the other. The line may be changed at any time, from any thread."""

    def __init__(self, source: int, sink: int, seed: int) -> None:
        self.line = Line()
        self.forgotten: frozenset[int] = frozenset()
        """TCP ports whose packets are lost, from either and to either."""
        self.passed = self.lost = 0
        self.source, self._sink = source, sink
        self._random = random.Random(seed)
        self._under_way: collections.deque[tuple[float, bytes]] = collections.deque()
        self._free_at = 0.0

    @property
    def next_arrival(self) -> float | None:
        return self._under_way[0][0] if self._under_way else None

    def take_in(self) -> None:
        """Reads what the interface has sent."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_PACKETS_IN_A_ROW):
                self._take(os.read(self.source, _LARGEST_PACKET))
                self.deliver()

    def _take(self, packet: bytes) -> None:
        line, now = self.line, time.monotonic()
        sent_at = now
        if line.rate is not None:
            sent_at = max(now, self._free_at)
        if self._is_lost(packet) or sent_at - now > line.buffer:
            self.lost += 1
            return
        if line.rate is not None:
            sent_at = self._free_at = sent_at + len(packet) * 8 / line.rate
        self._under_way.append((sent_at + line.delay, packet))

    def _is_lost(self, packet: bytes) -> bool:
        if self.forgotten:
            header = (packet[0] & 0x0F) * 4
            if self.forgotten.intersection(struct.unpack_from("!HH", packet, header)):
                return True
        return self._random.random() < self.line.loss

    def deliver(self) -> None:
        """Writes what has arrived by now."""
        while self._under_way and self._under_way[0][0] <= time.monotonic():
            # Errors are an interface that is going away.
            with contextlib.suppress(OSError):
                os.write(self._sink, self._under_way.popleft()[1])
            self.passed += 1


class Cable:
    """Two interfaces of this process's network namespace, either of which may be moved to another; and what is between.

    Userspace does what the kernel's `netem` would, for kernels without it.
    """

    def __init__(self, near: str, far: str) -> None:
        ends = [_interface(name) for name in (near, far)]
        self.outward, self.inward = Direction(*ends, seed=1), Direction(*reversed(ends), seed=2)
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
