"""Measures longer outages than the tests, and the tests' outage repeatedly. It checks nothing.

Runs only if this file is named to pytest.
"""

from __future__ import annotations

import pytest
from outage import ALL_PLANS, go_through_outage
from visitor import visitors

REPEATED_SECONDS = [20.0] * 5
LONG_SECONDS = [60.0, 180.0, 600.0]
TCP_TIMEOUT_SECONDS = 970.0
"""Linux closes a connection after its data was not acknowledged for at least 924 s."""


@pytest.mark.parametrize("click", [True, False], ids=["clicking", "idle"])
@pytest.mark.parametrize("seconds", [*REPEATED_SECONDS, *LONG_SECONDS, TCP_TIMEOUT_SECONDS])
def test_measure_an_outage(chromium, host, network, request, seconds, click) -> None:
    with visitors(chromium, host, ALL_PLANS, request.node.name) as people:
        for outcome in go_through_outage(network, people, seconds, click=click):
            row = {"outage s": f"{seconds:.0f}", "user": "clicks" if click else "idle", **outcome.row()}
            request.node.user_properties.append(("measured", row))
