"""A network between the servers and a browser. It can be slow, lose packets or drop all of them silently.

Invariant: nothing of it outlives the test run: its namespaces have no names and end with their processes.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.cable import Cable, Line
from support.process import Process

_SERVERS, _BROWSER = "10.77.0.1", "10.77.0.2"
"""The two ends. Their namespaces contain only the cable, so no address of the machine can conflict."""

_NEAR, _FAR = "near", "far"
_PERFECT, _DEAD = Line(), Line(loss=1.0)
_LIBC = ctypes.CDLL(None, use_errno=True)


def _call(*command: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


class Network:
    """This process and its servers are at the near end; commands prefixed with `at_far_end` run at the other.

    Needs root and its own network namespace, as from `unshare --net`. Servers stay on 127.0.0.1: a browser that is
    started with `resolver_rule` sends packets for that address to the near end, which forwards them to 127.0.0.1.
    """

    near, far = _SERVERS, _BROWSER
    """The addresses of the two ends."""
    resolver_rule = f"--host-resolver-rules=MAP 127.0.0.1 {_SERVERS}"

    def __init__(self) -> None:
        addresses = _call("ip", "-oneline", "address")
        assert not addresses, f"this network is in use: start these tests with `unshare --net`\n{addresses}"
        command = ["unshare", "--net", "sh", "-c", "echo created; exec sleep infinity"]
        self._namespace = Process("namespace of the browser", command, os.environ)
        try:
            self._namespace.wait_for_line("^created$", 10)
            self.at_far_end = ("nsenter", f"--net=/proc/{self._namespace.pid}/ns/net", "--")
            self._cable = Cable(_NEAR, _FAR)
            self._connect()
        except BaseException:
            self._namespace.stop()
            raise

    def _connect(self) -> None:
        _call("ip", "link", "set", _FAR, "netns", str(self._namespace.pid))
        for end, name, address in (((), _NEAR, _SERVERS), (self.at_far_end, _FAR, _BROWSER)):
            # Chromium would take an IPv6 address that appears a second later for a change of network.
            _call(*end, "ip", "link", "set", name, "addrgenmode", "none")
            _call(*end, "ip", "address", "add", f"{address}/30", "dev", name)
            _call(*end, "ip", "link", "set", name, "up")
            _call(*end, "ip", "link", "set", "lo", "up")
        Path(f"/proc/sys/net/ipv4/conf/{_NEAR}/route_localnet").write_text("1")
        arriving, to_loopback = ("--in-interface", _NEAR, "-p", "tcp"), ("DNAT", "--to-destination", "127.0.0.1")
        _call("iptables", "--wait", "-t", "nat", "--append", "PREROUTING", *arriving, "--jump", *to_loopback)

    def connect(self, port: int) -> socket.socket:
        """Connects to 127.0.0.1 of the far end, such as to a browser's driver. No packet of it uses the cable."""

        # Each thread has its own namespace, and a socket keeps that of the thread that made it.
        def connect_inside() -> socket.socket:
            with open(f"/proc/{self._namespace.pid}/ns/net") as namespace:
                assert _LIBC.setns(namespace.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
            return socket.create_connection(("127.0.0.1", port), timeout=10)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(connect_inside).result()

    def shape(self, outward: Line, inward: Line | None = None) -> None:
        """Sets the line to the browser (`outward`) and from it (`inward`, by default the same)."""
        self._cable.outward.line = outward
        self._cable.inward.line = inward or outward

    def drop(self) -> None:
        """Drops all packets in both directions."""
        self.shape(_DEAD)

    def drop_port(self, port: int) -> None:
        """Drops all packets from and to that TCP port."""
        self._drop_ports(frozenset([port]))

    @property
    def counts(self) -> tuple[int, int]:
        """Passed and lost packets, in both directions, since the start."""
        directions = self._cable.directions
        return sum(each.passed for each in directions), sum(each.lost for each in directions)

    def restore(self, *, drop_connections: bool = False) -> int:
        """Packets pass again, without delay. Returns the number of dropped connections.

        With `drop_connections` the packets of connections open now stay lost, as after a router lost its state or the
        user's phone changed to another network.
        """
        ports: set[str] = set()
        if drop_connections:
            sockets = _call(*self.at_far_end, "ss", "-Htn", "state", "established", "dst", _SERVERS)
            ports = set(re.findall(rf"{re.escape(_BROWSER)}:(\d+)\s", sockets))
            assert ports, "the browser has no open connection to drop"
            self._drop_ports(frozenset(map(int, ports)))
        self.shape(_PERFECT)
        return len(ports)

    def _drop_ports(self, ports: frozenset[int]) -> None:
        for direction in self._cable.directions:
            direction.dropped_ports = ports

    def reset(self) -> None:
        """Restores the state after the start."""
        self._drop_ports(frozenset())
        self.shape(_PERFECT)

    def stop(self) -> None:
        self._cable.stop()
        self._namespace.stop()
