"""A child process that cannot outlive its test, with its recorded output.

Invariant: every line that the child writes is read, so it never blocks on a full pipe.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import Mapping, Sequence


class Process:
    """A child in its own process group; its standard output and error are one list of lines."""

    def __init__(self, name: str, args: Sequence[str], env: Mapping[str, str], cwd: Path | None = None) -> None:
        self.name = name
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        # The kernel kills the child when the test run dies, even by SIGKILL; setpriv is part of util-linux.
        self._popen = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *args],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._drain, name=f"output of {name}", daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            with self._changed:
                self._lines.append(line.decode(errors="replace").rstrip())
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def lines(self) -> list[str]:
        with self._changed:
            return list(self._lines)

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def transcript(self, last: int = 40) -> str:
        """The last lines of the output, for the message of a failed assertion."""
        return f"last lines of {self.name}:\n  " + "\n  ".join(self.lines[-last:])

    def wait_for_line(self, pattern: str, seconds: float) -> re.Match[str]:
        """The first matching line, whether already written or still to come."""
        compiled = re.compile(pattern)

        def first() -> re.Match[str] | None:
            return next((found for line in self._lines if (found := compiled.search(line))), None)

        with self._changed:
            self._changed.wait_for(lambda: first() is not None or self._ended, timeout=seconds)
            found = first()
        assert found is not None, f"no line matched {pattern!r} within {seconds} s; {self.transcript()}"
        return found

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the whole process group, if it still exists."""
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            pass

    def wait(self, seconds: float) -> int:
        """Returns the exit code; fails the test if the child still runs after `seconds`."""
        try:
            code = self._popen.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {seconds} s; {self.transcript()}") from None
        self._reader.join(timeout=5)
        return code

    def stop(self) -> None:
        """Ends the group with SIGTERM, after 5 s with SIGKILL. A stopped (SIGSTOP) group is killed as well."""
        if self.running:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
            try:
                self._popen.wait(timeout=5)
            except subprocess.TimeoutExpired:
                pass
        self.signal(signal.SIGKILL)
        self._popen.wait()
        self._reader.join(timeout=5)
        if self._popen.stdout is not None:
            self._popen.stdout.close()
