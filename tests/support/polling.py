"""Waits for a condition that can only be polled: metrics, an HTTP response, the state of another process."""

from __future__ import annotations

import time
from typing import Callable

INTERVAL_SECONDS = 0.05


def wait_until(reached: Callable[[], bool], message: Callable[[], str], seconds: float) -> None:
    """Polls `reached` until it is true. After `seconds` it fails with `message`."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"{message()}, after {seconds} s"
        time.sleep(INTERVAL_SECONDS)
