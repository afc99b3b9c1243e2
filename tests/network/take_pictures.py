"""Takes the outage pictures of docs/: the same page at the same moment, without and with the watchdog.

Runs only if this file is named to pytest.
"""

from __future__ import annotations

import time

from conftest import NETWORK
from support.sidecar import REPOSITORY
from visitor import Plan, visitors

IMAGES = REPOSITORY / "docs" / "images"
SECONDS_INTO_OUTAGE = 20.0
SIZE = {"width": 800, "height": 500}


def test_take_pictures(chromium, host, network) -> None:
    version = next(version for version in NETWORK if version.name == "1.53.1")
    with visitors(chromium, host, [Plan(version), Plan(version, "self")], "pictures") as people:
        for visitor in people:
            visitor.page.page.set_viewport_size(SIZE)
            visitor.use()
            visitor.wait_for_acks(1)
        network.drop()
        lost = time.time()
        for visitor in people:
            visitor.click()
        people[0].page.page.wait_for_timeout((lost + SECONDS_INTO_OUTAGE - time.time()) * 1000)
        IMAGES.mkdir(exist_ok=True)
        for visitor in people:
            name = "outage-without-watchdog" if visitor.plan.watchdog == "off" else "outage-with-watchdog"
            visitor.page.page.screenshot(path=IMAGES / f"{name}.png")
        without, with_watchdog = (visitor.seconds_to_notice(lost) for visitor in people)
        assert without is None and with_watchdog is not None
