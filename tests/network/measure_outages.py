"""Measures outages that are longer than the one of the tests, and that one more often; judges nothing.

Not a test of every run, and so not named as one: name the file to pytest to run it.
"""

from __future__ import annotations

import pytest
from outage import EVERYONE, live_through
from visitor import visitors

OFTEN = [20.0] * 5
LONG = [60.0, 180.0, 600.0]
UNTIL_TCP_GIVES_UP = 970.0
"""Linux gives a connection up when its data was not acknowledged for 924 s, or a little more."""


@pytest.mark.parametrize("click", [True, False], ids=["clicking", "idle"])
@pytest.mark.parametrize("seconds", [*OFTEN, *LONG, UNTIL_TCP_GIVES_UP])
def test_an_outage(chromium, host, network, request, seconds, click) -> None:
    with visitors(chromium, host, EVERYONE, request.node.name) as everyone:
        for lived in live_through(network, everyone, seconds, click=click):
            row = {"outage s": f"{seconds:.0f}", "user": "clicks" if click else "idle", **lived.row()}
            request.node.user_properties.append(("measured", row))
