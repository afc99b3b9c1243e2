"""A network between the servers and a browser, that goes slow, loses packets or goes dead without a word.

Law: nothing of it outlives the test run, however that ends: its namespaces have no names and go with their processes.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from support.cable import Cable, Line
from support.process import Process

_SERVERS, _BROWSER = "10.77.0.1", "10.77.0.2"
"""The two ends. Nothing but the cable is in their namespaces, so no address of the machine's can be in the way."""

_NEAR, _FAR = "near", "far"
_UNHURT, _DEAD = Line(), Line(loss=1.0)


def _call(*command: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


class Network:
    """This process and the servers that it starts are at one end; what is started with `at_far_end` is at the other.

    Needs root and a network namespace of its own, as from `unshare --net`. Servers stay on 127.0.0.1: a browser that is
    started with `resolver_rule` looks for that address at the near end, which hands its packets on to it.
    """

    near, far = _SERVERS, _BROWSER
    """The addresses of the two ends."""
    resolver_rule = f"--host-resolver-rules=MAP 127.0.0.1 {_SERVERS}"

    def __init__(self) -> None:
        addresses = _call("ip", "-oneline", "address")
        assert not addresses, f"this network is in use: start these tests with `unshare --net`\n{addresses}"
        holder = ["unshare", "--net", "sh", "-c", "echo made; exec sleep infinity"]
        self._holder = Process("namespace of the browser", holder, os.environ)
        try:
            self._holder.wait_for_line("^made$", 10)
            self.at_far_end = ("nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--")
            self._cable = Cable(_NEAR, _FAR)
            self._connect()
        except BaseException:
            self._holder.stop()
            raise

    def _connect(self) -> None:
        _call("ip", "link", "set", _FAR, "netns", str(self._holder.pid))
        for end, name, address in (((), _NEAR, _SERVERS), (self.at_far_end, _FAR, _BROWSER)):
            # An IPv6 address that is ready a second later would be a change of network to Chromium.
            _call(*end, "ip", "link", "set", name, "addrgenmode", "none")
            _call(*end, "ip", "address", "add", f"{address}/30", "dev", name)
            _call(*end, "ip", "link", "set", name, "up")
            _call(*end, "ip", "link", "set", "lo", "up")
        Path(f"/proc/sys/net/ipv4/conf/{_NEAR}/route_localnet").write_text("1")
        arriving, to_loopback = ("--in-interface", _NEAR, "-p", "tcp"), ("DNAT", "--to-destination", "127.0.0.1")
        _call("iptables", "--wait", "-t", "nat", "--append", "PREROUTING", *arriving, "--jump", *to_loopback)

    def shape(self, outward: Line, inward: Line | None = None) -> None:
        """From here on packets to the browser fare as `outward` says, the others as `inward`, which is the same."""
        self._cable.outward.line = outward
        self._cable.inward.line = inward or outward

    def drop(self) -> None:
        """From here on every packet is lost, either way."""
        self.shape(_DEAD)

    def lose_port(self, port: int) -> None:
        """From here on every packet from and to that TCP port is lost."""
        self._forget(frozenset([port]))

    @property
    def counts(self) -> tuple[int, int]:
        """The packets that have passed and those that were lost, both ways, since the start."""
        ways = self._cable.directions
        return sum(way.passed for way in ways), sum(way.lost for way in ways)

    def restore(self, *, forget_connections: bool = False) -> int:
        """Packets pass again, without delay. Returns how many connections are forgotten.

        With `forget_connections` the packets of those that are open now do not pass: a router has forgotten them, or
        the user's telephone has changed to another network.
        """
        ports: set[str] = set()
        if forget_connections:
            sockets = _call(*self.at_far_end, "ss", "-Htn", "state", "established", "dst", _SERVERS)
            ports = set(re.findall(rf"{re.escape(_BROWSER)}:(\d+)\s", sockets))
            assert ports, "the browser has no connection that could be forgotten"
            self._forget(frozenset(map(int, ports)))
        self.shape(_UNHURT)
        return len(ports)

    def _forget(self, ports: frozenset[int]) -> None:
        for direction in self._cable.directions:
            direction.forgotten = ports

    def mend(self) -> None:
        """All is as it was at the start."""
        self._forget(frozenset())
        self.shape(_UNHURT)

    def stop(self) -> None:
        self._cable.stop()
        self._holder.stop()
