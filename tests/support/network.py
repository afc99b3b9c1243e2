"""A cable between the servers and a browser, that goes dead without a word and comes back.

Law: nothing of it outlives the test run, however that ends: its namespaces have no names and go with their processes.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from support.process import Process

_SERVERS, _BROWSER = "10.77.0.1", "10.77.0.2"
"""The two ends. Nothing but the cable is in their namespaces, so no address of the machine's can be in the way."""

_CABLE = "cable"
_LOSE_ALL = ("INPUT", "--in-interface", _CABLE, "--jump", "DROP")


def _call(*command: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


class Network:
    """This process and the servers that it starts are at one end; what is started with `at_far_end` is at the other.

    Needs root and a network namespace of its own, as from `unshare --net`. Servers stay on 127.0.0.1: a browser that is
    started with `resolver_rule` looks for that address at the near end, which hands its packets on to it. Packets are
    lost where they arrive; at its own end, the kernel would tell the sender.
    """

    resolver_rule = f"--host-resolver-rules=MAP 127.0.0.1 {_SERVERS}"

    def __init__(self) -> None:
        addresses = _call("ip", "-oneline", "address")
        assert not addresses, f"this network is in use: start these tests with `unshare --net`\n{addresses}"
        holder = ["unshare", "--net", "sh", "-c", "echo made; exec sleep infinity"]
        self._holder = Process("namespace of the browser", holder, os.environ)
        try:
            self._holder.wait_for_line("^made$", 10)
            self.at_far_end = ("nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--")
            self._ends = ((), self.at_far_end)
            self._lay_cable()
        except BaseException:
            self.stop()
            raise

    def _lay_cable(self) -> None:
        _call("ip", "link", "add", _CABLE, "type", "veth", "peer", "name", _CABLE, "netns", str(self._holder.pid))
        for end, address in zip(self._ends, (_SERVERS, _BROWSER)):
            # An IPv6 address that is ready a second later would be a change of network to Chromium.
            _call(*end, "ip", "link", "set", _CABLE, "addrgenmode", "none")
            _call(*end, "ip", "address", "add", f"{address}/30", "dev", _CABLE)
            _call(*end, "ip", "link", "set", _CABLE, "up")
            _call(*end, "ip", "link", "set", "lo", "up")
        Path(f"/proc/sys/net/ipv4/conf/{_CABLE}/route_localnet").write_text("1")
        arriving, to_loopback = ("--in-interface", _CABLE, "-p", "tcp"), ("DNAT", "--to-destination", "127.0.0.1")
        _call("iptables", "--wait", "-t", "nat", "--append", "PREROUTING", *arriving, "--jump", *to_loopback)

    def drop(self) -> None:
        """From here on every packet is lost, either way."""
        for end in self._ends:
            _call(*end, "iptables", "--wait", "--insert", *_LOSE_ALL)

    def restore(self, *, forget_connections: bool = False) -> int:
        """Packets pass again. Returns how many connections are forgotten.

        With `forget_connections` the packets of those that are open now do not pass: a router has forgotten them, or
        the user's telephone has changed to another network.
        """
        ports: set[str] = set()
        if forget_connections:
            sockets = _call(*self.at_far_end, "ss", "-Htn", "state", "established", "dst", _SERVERS)
            ports = set(re.findall(rf"{re.escape(_BROWSER)}:(\d+)\s", sockets))
            assert ports, "the browser has no connection that could be forgotten"
            for port in ports:
                for end, match in zip(self._ends, ("--source-port", "--destination-port")):
                    _call(*end, "iptables", "--wait", "--append", "INPUT", "-p", "tcp", match, port, "--jump", "DROP")
        for end in self._ends:
            _call(*end, "iptables", "--wait", "--delete", *_LOSE_ALL)
        return len(ports)

    def mend(self) -> None:
        """All is as it was at the start."""
        for end in self._ends:
            _call(*end, "iptables", "--wait", "--flush", "INPUT")

    def stop(self) -> None:
        self._holder.stop()
