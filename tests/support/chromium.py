"""The installed chromium, without background network traffic."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Iterator

from playwright.sync_api import Browser, sync_playwright

_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", *_QUIET)


def executable() -> str:
    found = shutil.which("chromium")
    assert found, "chromium is missing: it comes with Debian's package of that name"
    return found


@contextlib.contextmanager
def launched(launcher: str | Path, *arguments: str) -> Iterator[Browser]:
    """Runs until the end of the block. `launcher` is the executable, or a script that passes its arguments on to it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=launcher, args=[*_ARGUMENTS, *arguments])
        yield browser
        browser.close()
