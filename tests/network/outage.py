"""One outage for all visitors at once, from the loss of all packets to the first answer after it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from conftest import NETWORK
from support import status_watch
from support.network import Network
from visitor import CLICKS_BEFORE, Plan, Visitor

TIMEOUT_SECONDS = 150.0
"""For a page to connect and answer after the outage: TCP retransmits after up to 120 s."""

WATCHED = [version for version in NETWORK if version.name in ("1.25.0", "1.29.0", "1.40.0", "1.53.1", "1.67.0")]
WITH = [Plan(version, "self") for version in WATCHED]
WITH += [Plan(version, "host", hosted=True) for version in WATCHED if version.does_not_enforce_acks]
WITHOUT = [Plan(version) for version in WATCHED]
NATIVE = Plan(NETWORK[-1], hosted=True)
"""Streamlit's own reconnect, for comparison with the watchdog."""

ALL_PLANS = [*WITH, NATIVE, *WITHOUT]


@dataclass
class Outcome:
    """An outage as one visitor experienced it. Seconds: `noticed` from its start, the others from its end."""

    visitor: Visitor
    noticed: float | None = None
    shown: str = ""
    """The page's status and dialogs at the end of the outage."""
    connected: float | None = None
    dialogs: int = 0
    """The number of dialogs after the reconnect, which the user closes."""
    first_answer: float | None = None
    """The answer to the click during the outage; `None` if the page lost it."""
    answer: float = 0.0
    """Seconds from the next click to its answer."""
    runs: int = 0
    """Script runs that the session has counted at the end."""

    def row(self) -> dict[str, str]:
        times = {
            "noticed s": self.noticed,
            "connected s": self.connected,
            "answer to click in outage s": self.first_answer,
        }
        shown = {name: "-" if value is None else f"{value:.1f}" for name, value in times.items()}
        runs = f"{CLICKS_BEFORE + 1} -> {self.runs}"
        during = {"page": str(self.visitor.plan), "shows": self.shown or "nothing"}
        after = {"dialogs": str(self.dialogs), "answer to next click s": f"{self.answer:.1f}", "runs": runs}
        return {**during, **shown, **after}


def _wait_for_recovery(outcomes: list[Outcome], restored: float) -> None:
    for outcome in outcomes:
        if outcome.noticed is not None:
            outcome.connected = outcome.visitor.wait_until_connected(TIMEOUT_SECONDS) - restored
    for outcome in outcomes:
        outcome.dialogs = outcome.visitor.close_dialogs()
        in_outage = f"level {outcome.visitor.level}"
        outcome.answer = outcome.visitor.click_until_answered(TIMEOUT_SECONDS)
        outcome.runs = outcome.visitor.runs
        answered = status_watch.texts(outcome.visitor.page.frame).get(in_outage, 0.0) - restored
        outcome.first_answer = answered if answered > 0 else None


def go_through_outage(
    network: Network, people: list[Visitor], seconds: float, *, click: bool = True
) -> list[Outcome]:
    """All visitors use the app, click once during the outage if `click`, and click again after the reconnect."""
    for visitor in people:
        visitor.use()
    for visitor in people:
        visitor.start_heartbeats()
    for visitor in people:
        visitor.wait_for_acks(1)
    network.drop()
    lost = time.time()
    for visitor in people:
        assert not click or visitor.click(), f"{visitor.plan} does not allow a click"
    people[0].page.page.wait_for_timeout((lost + seconds - time.time()) * 1000)
    outcomes = [Outcome(visitor, visitor.seconds_to_notice(lost), visitor.shows) for visitor in people]
    network.restore()
    _wait_for_recovery(outcomes, time.time())
    return outcomes
