"""Users of the app at the same time, each with a page and a sidecar."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Iterator, Mapping

from playwright.sync_api import Browser, TimeoutError, expect
from support import status_watch, stream_watch
from support.app import App
from support.app_page import AppPage
from support.host_page import HostedPage, HostServer
from support.sidecar import NoSidecar, Sidecar
from support.streamlit_server import APP
from support.version import Version

INTERVAL_SECONDS, ACK_TIMEOUT_SECONDS = 10.0, 5.0
"""The watchdog's default settings, also used by the host page."""

NOTICED_WITHIN = INTERVAL_SECONDS + ACK_TIMEOUT_SECONDS + 1
"""Seconds from the start of the outage."""

CLICKS_BEFORE = 3
"""Clicks before the outage."""

_BLOCKED_RETRY_SECONDS, _UNANSWERED_RETRY_SECONDS = 0.2, 5.0
"""Time until the user clicks again: if the page did not allow the click, and if there was no answer."""
_TIMEOUT_SECONDS = 60.0
"""For answers that are not under test."""


@dataclass(frozen=True)
class Plan:
    """The setup of one visitor."""

    version: Version
    watchdog: str = "off"
    """As in `--watchdog`."""
    hosted: bool = False
    """Whether the page is embedded in a host page, which requests heartbeats."""
    direct: bool = False
    """Whether there is no sidecar."""
    options: tuple[str, ...] = ()
    """More arguments for the sidecar."""

    def __str__(self) -> str:
        heartbeats = "host's heartbeats" if self.hosted and self.watchdog != "host" else ""
        return " ".join(
            filter(None, [self.version.name, "direct" if self.direct else self.watchdog, heartbeats, *self.options])
        )

    @property
    def has_heartbeats(self) -> bool:
        return self.watchdog != "off" or self.hosted

    @property
    def arguments(self) -> tuple[str, ...]:
        # The tests with visitors are about the watchdog alone; the page resumes nothing.
        watchdog = () if self.watchdog == "off" else ("--watchdog", self.watchdog, "--resume-enabled", "false")
        return (*self.options, *watchdog)


@dataclass
class Visitor:
    """One user. Records the user's actions, to compare them with the app's state."""

    plan: Plan
    page: AppPage
    level: int = 10
    """The slider position that the user chose."""
    _runs_before: int = 0
    """The number of runs shown at the last click."""

    def click(self) -> bool:
        """Moves the slider by one without waiting for an answer. Returns whether the page allowed it."""
        self._runs_before = self.runs
        before, self.level = self.level, self.page.move_slider("Level")
        return self.level > before

    def wait_for_answer(self, seconds: float = _TIMEOUT_SECONDS) -> float:
        """Waits until the app has answered the last click; returns the time of the answer."""
        answered = status_watch.wait_for_text(self.page.frame, f"level {self.level}", seconds)
        # The run's text is below the level, so it may be drawn later.
        expect(self.page.frame.get_by_text(f"run {self._runs_before}", exact=True)).to_have_count(0)
        return answered

    def click_until_answered(self, seconds: float) -> float:
        """Repeats an unanswered click, as people do. Returns the seconds from the last click to its answer."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                clicked = time.time()
                if self.click():
                    return self.wait_for_answer(_UNANSWERED_RETRY_SECONDS) - clicked
                self.page.page.wait_for_timeout(_BLOCKED_RETRY_SECONDS * 1000)
        raise AssertionError(f"{self.plan} has not answered within {seconds} s")

    def close_dialogs(self) -> int:
        """Returns the number of dialogs that were open."""
        count = self.page.dialogs.count()
        if count:
            self.page.page.keyboard.press("Escape")
            expect(self.page.dialogs).to_have_count(0)
        return count

    def use(self) -> None:
        """Gives the session some state."""
        for _ in range(CLICKS_BEFORE):
            self.click()
            self.wait_for_answer()
        assert self.runs == CLICKS_BEFORE + 1, f"the session has seen {self.runs} runs"

    def request_table(self) -> None:
        """Requests one large message from `large_app.py`."""
        self.page.frame.get_by_role("button", name="Table").click()

    def start_heartbeats(self) -> None:
        if isinstance(self.page, HostedPage):
            self.page.start_heartbeats(10_000, interval=INTERVAL_SECONDS, ack_timeout=ACK_TIMEOUT_SECONDS)

    def wait_for_acks(self, count: int) -> None:
        """Waits for `count` acks, if the page sends heartbeats."""
        if self.plan.has_heartbeats:
            stream_watch.wait_for_acks(self.page.frame, count)

    @property
    def runs(self) -> int:
        """The script runs that the session has counted."""
        text = self.page.frame.get_by_text(re.compile(r"^run \d+$")).inner_text()
        return int(text.removeprefix("run "))

    @property
    def shows(self) -> str:
        """The page's current status and dialogs."""
        changes = status_watch.history(self.page.frame)
        return changes[-1].text if changes else ""

    def seconds_to_notice(self, lost: float) -> float | None:
        """Seconds from `lost` until the page showed that it is connecting; `None` if it has not."""
        times = [shown.at for shown in status_watch.history(self.page.frame) if shown.connecting and shown.at >= lost]
        return times[0] - lost if times else None

    def wait_until_connected(self, seconds: float) -> float:
        """Waits until the page no longer shows that it is connecting; returns the time of that change."""
        status_watch.wait_until_connected(self.page.frame, seconds)
        return status_watch.history(self.page.frame)[-1].at


@contextlib.contextmanager
def visitors(
    chromium: Browser,
    host: HostServer,
    plans: Iterable[Plan],
    evidence: str,
    script: Path = APP,
    options: Mapping[str, str] | None = None,
) -> Iterator[list[Visitor]]:
    """Opens one page per plan. Pages of one version share only the server. Saves evidence on failure."""
    with contextlib.ExitStack() as stack:
        apps: dict[Version, App] = {}
        opened: list[Visitor] = []
        for plan in plans:
            if plan.version not in apps:
                apps[plan.version] = App(plan.version, host, script, options)
                stack.callback(apps[plan.version].stop)
            app = apps[plan.version]
            upstream = app.address if plan.hosted else app.server.address
            sidecar = NoSidecar(upstream) if plan.direct else Sidecar(upstream, *plan.arguments)
            page = HostedPage(chromium, sidecar, host) if plan.hosted else AppPage(chromium, sidecar)
            stack.callback(page.close)
            opened.append(Visitor(plan, page))
        try:
            for visitor in opened:
                visitor.page.open()
            yield opened
        except BaseException:
            for visitor in opened:
                with contextlib.suppress(Exception):
                    visitor.page.save_evidence(f"{evidence} {visitor.plan}")
            raise
