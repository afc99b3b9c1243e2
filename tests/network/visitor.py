"""People who use the app at the same time, each in a page behind a sidecar of its own."""

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
"""The watchdog's default settings, and what the host asks for."""

NOTICED_WITHIN = INTERVAL_SECONDS + ACK_TIMEOUT_SECONDS + 1
"""Seconds from the loss of the network."""

CLICKS_BEFORE = 3
"""What the user does before anything happens to the network."""

_BETWEEN_CLICKS, _PATIENCE_OF_PEOPLE = 0.2, 5.0
"""Seconds until the next click, while the page does not let one click, and where it does."""
_PATIENCE = 60.0
"""Seconds, for what is not under test."""


@dataclass(frozen=True)
class Plan:
    """What a user has before them."""

    version: Version
    watchdog: str = "off"
    """As in `--watchdog`."""
    hosted: bool = False
    """Whether the page is embedded in a host's, that sends it heartbeats."""
    direct: bool = False
    """Whether there is no sidecar at all."""
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
        return (*self.options, *(() if self.watchdog == "off" else ("--watchdog", self.watchdog)))


@dataclass
class Visitor:
    """One user: remembers what they have done, so that it can be told whether the app does."""

    plan: Plan
    page: AppPage
    level: int = 10
    """Where the user has moved the slider."""
    _runs_before: int = 0
    """What the page showed when the user clicked last."""

    def click(self) -> bool:
        """Moves the slider by one and does not wait for an answer; says whether the page has let it be moved."""
        self._runs_before = self.runs
        before, self.level = self.level, self.page.move_slider("Level")
        return self.level > before

    def wait_for_answer(self, seconds: float = _PATIENCE) -> float:
        """Until the app has answered the last click; returns when that was."""
        answered = status_watch.wait_for_text(self.page.frame, f"level {self.level}", seconds)
        # A later line of the page, so it may be drawn a moment later.
        expect(self.page.frame.get_by_text(f"run {self._runs_before}", exact=True)).to_have_count(0)
        return answered

    def click_until_answered(self, seconds: float) -> float:
        """Clicks again when there is no answer, as people do; returns after how many seconds the last click had one."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                clicked = time.time()
                if self.click():
                    return self.wait_for_answer(_PATIENCE_OF_PEOPLE) - clicked
                self.page.page.wait_for_timeout(_BETWEEN_CLICKS * 1000)
        raise AssertionError(f"{self.plan} has not answered within {seconds} s")

    def close_dialogs(self) -> int:
        """Returns how many there were."""
        count = self.page.dialogs.count()
        if count:
            self.page.page.keyboard.press("Escape")
            expect(self.page.dialogs).to_have_count(0)
        return count

    def use(self) -> None:
        """Gives the session a state that can be lost."""
        for _ in range(CLICKS_BEFORE):
            self.click()
            self.wait_for_answer()
        assert self.runs == CLICKS_BEFORE + 1, f"the session has seen {self.runs} runs"

    def ask_for_table(self) -> None:
        """One large message, of the app that has them."""
        self.page.frame.get_by_role("button", name="Table").click()

    def start_heartbeats(self) -> None:
        if isinstance(self.page, HostedPage):
            self.page.start_heartbeats(10_000, interval=INTERVAL_SECONDS, ack_timeout=ACK_TIMEOUT_SECONDS)

    def wait_for_acks(self, count: int) -> None:
        """Until the page has got so many, if it gets heartbeats at all."""
        if self.plan.has_heartbeats:
            stream_watch.wait_for_acks(self.page.frame, count)

    @property
    def runs(self) -> int:
        """How many runs of its script the session remembers."""
        text = self.page.frame.get_by_text(re.compile(r"^run \d+$")).inner_text()
        return int(text.removeprefix("run "))

    @property
    def shows(self) -> str:
        """The page's status and dialogs, now."""
        changes = status_watch.history(self.page.frame)
        return changes[-1].text if changes else ""

    def seconds_to_notice(self, lost: float) -> float | None:
        """From `lost` to when the page has said that its connection is, if it has."""
        times = [shown.at for shown in status_watch.history(self.page.frame) if shown.connecting and shown.at >= lost]
        return times[0] - lost if times else None

    def wait_until_connected(self, seconds: float) -> float:
        """Until the page does not say any more that its connection is lost; returns since when it has not."""
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
    """Opens a page each; those of one version share a server, nothing else. Keeps evidence of a failure."""
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
