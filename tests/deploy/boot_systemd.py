"""A real systemd, the first process of a new PID namespace, runs the unit: more than `verify` can check. Needs root."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Callable, Iterator

import pytest
from support import http, polling
from support.process import Process
from support.sidecar import binary
from tools import DEPLOY, output

TARGETS = ["sysinit", "basic", "sockets", "multi-user", "network-online", "shutdown", "umount"]
# Mounts change in this namespace only, and the machine's kernel settings are read-only.
BOOT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /var/log
mount -t tmpfs tmpfs /opt
install -m 755 "$BINARY" /opt/heartbeat-sidecar
echo 'log_level = "info"' > /opt/sidecar.toml
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec /lib/systemd/systemd --system --unit=boot.target --show-status=0 --default-standard-output=null
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Booted:
    """A systemd with this project's two units only."""

    def __init__(self, directory: Path) -> None:
        self.public, self.admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
        changes = {
            "/usr/local/bin/": "/opt/",
            "EnvironmentFile=-/etc/heartbeat-sidecar/environment": (
                f"Environment=HEARTBEAT_SIDECAR_ADMIN={self.admin} HEARTBEAT_SIDECAR_CONFIG=/opt/sidecar.toml"
            ),
            "WatchdogSec=30s": "WatchdogSec=2s",
            "0.0.0.0:8500": self.public,
        }
        for unit in (DEPLOY / "systemd").iterdir():
            text = unit.read_text()
            for shipped, here in changes.items():
                text = text.replace(shipped, here)
            (directory / unit.name).write_text(text)
        for target in TARGETS:
            (directory / f"{target}.target").write_text("[Unit]\n")
        wants = "Wants=heartbeat-sidecar.socket heartbeat-sidecar.service"
        (directory / "boot.target").write_text(f"[Unit]\nDefaultDependencies=no\n{wants}\n")
        env = {"PATH": os.environ["PATH"], "container": "test", "SYSTEMD_UNIT_PATH": str(directory)}
        namespaces = ["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child"]
        env["BINARY"] = str(binary())
        self._process = Process("systemd", ["unshare", *namespaces, "bash", "-c", BOOT], env)
        try:
            self.wait_until(lambda: self.show("ActiveState") == "active", "the unit is not active")
        except BaseException:
            self.stop()
            raise

    def inside(self, *command: str) -> str:
        unshared = self._process.pid
        [first] = Path(f"/proc/{unshared}/task/{unshared}/children").read_text().split()
        return output("nsenter", "-t", first, "-m", "-p", "-C", *command).strip()

    def show(self, name: str) -> str:
        try:
            return self.inside("systemctl", "show", "heartbeat-sidecar.service", "--value", "-p", name)
        except (AssertionError, ValueError):
            # systemd does not listen yet.
            return ""

    def wait_until(self, reached: Callable[[], bool], message: str, seconds: float = 30.0) -> None:
        polling.wait_until(reached, lambda: f"{message}; {self._process.transcript()}", seconds)

    def stop(self) -> None:
        self._process.signal(signal.SIGKILL)
        self._process.stop()


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    assert os.geteuid() == 0 and shutil.which("nsenter"), "only root can start systemd: run as root"
    directory = tmp_path_factory.mktemp("units")
    running = Booted(directory)
    yield running
    running.stop()


def test_the_service_is_ready_when_it_serves_and_has_no_capabilities(booted: Booted) -> None:
    assert http.get(booted.admin, "/readyz").status == 200
    assert booted.show("NotifyAccess") == "main" and booted.show("StatusText").startswith("serving")
    status = booted.inside("cat", f"/proc/{booted.show('MainPID')}/status")
    rights = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert rights["CapEff"] == rights["CapBnd"] == "0" * 16 and rights["NoNewPrivs"] == "1" and rights["Seccomp"] == "2"
    assert "0" not in rights["Uid"].split()


def test_a_reload_reads_the_file_and_keeps_the_process(booted: Booted) -> None:
    before = booted.show("MainPID")
    for text, result in (('log_level = "debug"', "accepted"), ("log_level =", "refused")):
        booted.inside("sh", "-c", f"echo '{text}' > /opt/sidecar.toml")
        booted.inside("systemctl", "reload", "heartbeat-sidecar.service")
        wanted = f'heartbeat_sidecar_config_reloads_total{{result="{result}"}} 0'
        booted.wait_until(lambda: wanted not in http.get(booted.admin, "/metrics").body.decode(), f"not {result}")
        booted.wait_until(lambda: booted.show("ActiveState") == "active", "the reload does not end")
    assert booted.show("MainPID") == before
    booted.inside("sh", "-c", "echo > /opt/sidecar.toml")


def test_a_client_that_connects_while_the_service_is_down_waits_and_gets_a_response(booted: Booted) -> None:
    before = booted.show("MainPID")
    booted.inside("systemctl", "stop", "heartbeat-sidecar.service")
    # This connection starts the service again. There is no app, so the response is 502.
    assert http.get(booted.public, "/").status == 502
    assert booted.show("MainPID") != before and booted.show("Result") == "success"


def test_a_frozen_process_is_replaced(booted: Booted) -> None:
    before = booted.show("MainPID")
    booted.inside("kill", "-STOP", before)
    booted.wait_until(lambda: booted.show("MainPID") not in ("", "0", before), "systemd's watchdog did not restart it")
    assert http.get(booted.public, "/").status == 502
