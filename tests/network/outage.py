"""One outage for many visitors at once, from the loss of all packets to the first answer after their return."""

from __future__ import annotations

import time
from dataclasses import dataclass

from conftest import NETWORK
from support import status_watch
from support.network import Network
from visitor import CLICKS_BEFORE, Plan, Visitor

PATIENCE = 150.0
"""Seconds from the return, for a page to connect and to answer: TCP repeats what was lost after up to 120 s."""

WATCHED = [version for version in NETWORK if version.name in ("1.25.0", "1.29.0", "1.40.0", "1.53.1", "1.67.0")]
WITH = [Plan(version, "self") for version in WATCHED]
WITH += [Plan(version, "host", hosted=True) for version in WATCHED if version.does_not_heed_acks]
WITHOUT = [Plan(version) for version in WATCHED]
NATIVE = Plan(NETWORK[-1], hosted=True)
"""Streamlit's own mechanism, which the watchdog is measured against."""

EVERYONE = [*WITH, NATIVE, *WITHOUT]


@dataclass
class Lived:
    """What a visitor has lived through, in seconds: `noticed` from the loss, the others from the return."""

    visitor: Visitor
    noticed: float | None = None
    shown: str = ""
    """By the page, in the end of the outage: its status, and dialogs if there are any."""
    connected: float | None = None
    dialogs: int = 0
    """That cover the page when it is back; people close them."""
    first_answer: float | None = None
    """To the click that was made while the network was dead; a page may have forgotten it."""
    answer: float = 0.0
    """From the next click on."""
    runs: int = 0
    """That the session remembers in the end."""

    def row(self) -> dict[str, str]:
        times = {
            "noticed s": self.noticed,
            "connected s": self.connected,
            "answer to click in outage s": self.first_answer,
        }
        shown = {name: "-" if value is None else f"{value:.1f}" for name, value in times.items()}
        runs = f"{CLICKS_BEFORE + 1} -> {self.runs}"
        told = {"page": str(self.visitor.plan), "says": self.shown or "nothing"}
        after = {"dialogs": str(self.dialogs), "answer to next click s": f"{self.answer:.1f}", "runs": runs}
        return {**told, **shown, **after}


def _come_back(everyone: list[Lived], restored: float) -> None:
    for lived in everyone:
        if lived.noticed is not None:
            lived.connected = lived.visitor.wait_until_connected(PATIENCE) - restored
    for lived in everyone:
        lived.dialogs = lived.visitor.close_dialogs()
        in_outage = f"level {lived.visitor.level}"
        lived.answer = lived.visitor.click_until_answered(PATIENCE)
        lived.runs = lived.visitor.runs
        answered = status_watch.texts(lived.visitor.page.frame).get(in_outage, 0.0) - restored
        lived.first_answer = answered if answered > 0 else None


def live_through(network: Network, everyone: list[Visitor], seconds: float, *, click: bool = True) -> list[Lived]:
    """Everyone has used the app for a while, clicks into the outage unless told, and again when the page is back."""
    for visitor in everyone:
        visitor.use()
    for visitor in everyone:
        visitor.start_heartbeats()
    for visitor in everyone:
        visitor.wait_for_acks(1)
    network.drop()
    lost = time.time()
    for visitor in everyone:
        assert not click or visitor.click(), f"{visitor.plan} does not let its user click"
    everyone[0].page.page.wait_for_timeout((lost + seconds - time.time()) * 1000)
    lived = [Lived(visitor, visitor.seconds_to_notice(lost), visitor.shows) for visitor in everyone]
    network.restore()
    _come_back(lived, time.time())
    return lived
