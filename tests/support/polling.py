"""Waits for what can only be asked for again and again: metrics, an HTTP answer, another process's state."""

from __future__ import annotations

import time
from typing import Callable

PAUSE = 0.05
"""Seconds from one question to the next."""


def wait_until(reached: Callable[[], bool], otherwise: Callable[[], str], seconds: float) -> None:
    """Fails with what `otherwise` says then, if it is not reached in time."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"{otherwise()}, after {seconds} s"
        time.sleep(PAUSE)
