"""One outage in which all users act, and what became of each action."""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Iterator

from actor import KINDS, SCRIPT, WORK, WORK_SECONDS, WORK_STEPS, User, Way
from playwright.sync_api import Browser, Error
from support.app import App
from support.app_page import AppPage, Front
from support.host_page import HostedPage, HostServer
from support.network import Network
from support.sidecar import Sidecar
from support.version import Version

ANSWER_WITHIN = 20.0
"""Seconds from the return of the network, and as long again as the outage: a page tries to connect every few seconds,
and TCP repeats at the latest when it has tried for twice as long as before."""
WORKING_SECONDS = 30.0
"""For an answer on a working network."""
SETTLED_SECONDS = 3.0
"""After the last answer, for an action that is executed a second time."""


class HarmError(AssertionError):
    """The outage cost a user something."""


@dataclass
class Outcome:
    """An outage as one user experienced it."""

    user: User
    kind: str
    line: str
    """What the page shows once the app has executed the action."""
    seconds: float
    """The length of the outage."""
    lines_before: int
    """The length of the user's journal before the action."""
    session: str
    at: float = 0.0
    """When the user acted, in seconds from the start of the outage; less than 0 is before it."""
    accepted: bool = False
    """Whether the page allowed the action."""
    executed: int = 0
    shown: bool = False
    blank: bool = False
    dialogs: int = 0
    kept: bool = False
    """Whether the page shows the same session."""

    @property
    def harm(self) -> bool:
        lost = self.accepted and not (self.executed == 1 and self.shown)
        return lost or self.blank or not self.kept or self.dialogs > 0

    def inspect(self) -> None:
        """Compares the page and the app's journal with what they should be."""
        new = self.user.journal()[self.lines_before :]
        if self.kind == WORK:
            whole = [f"step {step}" for step in [*range(WORK_STEPS), "end"]]
            self.executed = 1 if new == whole else 2 if new.count("step 0") > 1 else 0
            steps = self.user.page.frame.locator("[data-testid=stText]").filter(has_text="step ").count()
            self.shown = self.user.shows(self.line) and steps == WORK_STEPS
        else:
            # A click that is executed twice counts on, so its lines differ.
            is_click = self.kind == "click"
            self.executed = sum(line == self.line or is_click and line.startswith("click ") for line in new)
            self.shown = self.user.shows(self.line)
        self.blank = not self.user.shows("end of page")
        self.dialogs = self.user.page.dialogs.count()
        self.kept = not self.blank and self.user.session == self.session

    def row(self) -> dict[str, str]:
        return {
            "outage s": f"{self.seconds:.0f}",
            "Streamlit": self.user.version.name,
            "way": self.user.way.name,
            "action": self.kind,
            "at s": f"{self.at:.1f}",
            "accepted": str(self.accepted),
            "executed": str(self.executed),
            "answer shown": str(self.shown),
            "page": "blank" if self.blank else "shown",
            "session": "kept" if self.kept else "lost",
            "dialogs": str(self.dialogs),
        }


@contextlib.contextmanager
def users(
    chromium: Browser,
    host: HostServer,
    versions: Iterable[Version],
    ways: Iterable[Way],
    evidence: str,
    script: Path = SCRIPT,
    front: Callable[[str], Front] | None = None,
) -> Iterator[list[User]]:
    """Opens a page for each version and way; a way that is named twice gets two. Saves evidence on failure.

    `front` makes a proxy in front of each sidecar.
    """
    ways = list(ways)
    with contextlib.ExitStack() as stack:
        people: list[User] = []
        for version in versions:
            app = App(version, host, script)
            stack.callback(app.stop)
            for way in ways:
                sidecar = Sidecar(app.address if way.hosted else app.server.address, *way.arguments)
                if way.hosted:
                    page = HostedPage(chromium, sidecar, host)
                else:
                    page = AppPage(chromium, sidecar, front=front(sidecar.address) if front else None)
                stack.callback(page.close)
                people.append(User(f"page{len(people)}", version, way, app, page))
        try:
            for user in people:
                # On a busy machine some pages need a second attempt, which `act_in_outage` makes.
                with contextlib.suppress(AssertionError, Error):
                    user.open()
            yield people
        except BaseException:
            for user in people:
                with contextlib.suppress(Exception):
                    user.page.save_evidence(f"{evidence} {user}")
            raise


def _working(people: list[User]) -> list[User]:
    """Everybody clicks. Pages that do not answer are reloaded; those that still do not are left out."""
    failed = people
    for _ in range(2):
        clicked = [(user, user.click()) for user in failed]
        failed = [user for user, line in clicked if line is None or not user.shows(line, WORKING_SECONDS)]
        for user in failed:
            with contextlib.suppress(Error, AssertionError):
                user.open()
    return [user for user in people if user not in failed]


def _prepare(people: list[User], kinds: list[str], seconds: float) -> list[Outcome]:
    """Everybody has used the app and is about to act. Pages that do not work are left out."""
    outcomes = []
    for user, kind in zip(_working(people), kinds):
        try:
            user.wait_for_ack()
            line = user.prepare(kind)
        except Error as error:
            print(f"{user} is left out: {error}")
            continue
        outcomes.append(Outcome(user, kind, line, seconds, len(user.journal()), user.session))
    return outcomes


def _wait_for_answers(outcomes: list[Outcome], within: float) -> None:
    waiting = list(outcomes)
    deadline = time.monotonic() + within
    while waiting and time.monotonic() < deadline:
        outcomes[0].user.page.page.wait_for_timeout(250)
        waiting = [outcome for outcome in waiting if outcome.accepted and not outcome.user.shows(outcome.line)]
    outcomes[0].user.page.page.wait_for_timeout(SETTLED_SECONDS * 1000)


def act_in_outage(
    network: Network, people: list[User], kinds: list[str], seconds: float, act_within: float, chance: random.Random
) -> list[Outcome]:
    """Each user does one thing at a random moment of the outage's first `act_within` seconds.

    Scripts are started before the outage. A user whose turn comes after the outage is left out.
    """
    outcomes = _prepare(people, kinds, seconds)
    page = people[0].page.page
    # The outage begins at a random moment between two heartbeats.
    page.wait_for_timeout(chance.uniform(0, 10) * 1000)
    for outcome in outcomes:
        if outcome.kind == WORK:
            outcome.accepted = outcome.user.act(WORK) and outcome.user.shows("step 0", WORKING_SECONDS)
            outcome.at = -1.0
    moments = sorted((chance.uniform(0, act_within), number) for number in range(len(outcomes)))
    network.drop()
    lost = time.monotonic()
    acted = [outcome for outcome in outcomes if outcome.kind == WORK]
    for at, number in moments:
        outcome = outcomes[number]
        if outcome.kind == WORK or time.monotonic() > lost + seconds - 0.2:
            continue
        page.wait_for_timeout(max(0.0, lost + at - time.monotonic()) * 1000)
        outcome.at = time.monotonic() - lost
        outcome.accepted = outcome.user.act(outcome.kind)
        acted.append(outcome)
    page.wait_for_timeout(max(0.0, lost + seconds - time.monotonic()) * 1000)
    network.restore()
    _wait_for_answers(acted, ANSWER_WITHIN + max(seconds, WORK_SECONDS if WORK in kinds else 0.0))
    for outcome in acted:
        outcome.inspect()
        if outcome.harm:
            outcome.user.page.save_evidence(f"harm {seconds:.0f} {outcome.kind} {outcome.user}")
    return acted


def deal(people: list[User], chance: random.Random, kinds: Iterable[str] = KINDS) -> list[str]:
    """As many actions as users, of all kinds about equally often, in random order."""
    kinds = list(kinds)
    start = chance.randrange(len(kinds))
    dealt = [kinds[(start + number) % len(kinds)] for number in range(len(people))]
    chance.shuffle(dealt)
    return dealt
