"""Measures how engines differ where a page's connection is concerned. Runs only when named; checks nothing.

The pages and websockets are those of `probe_server.py`, without Streamlit and without a sidecar.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from typing import Any, Callable, Iterator

import pytest
import scripts
from probe_server import ProbeServer
from support.bidi import Firefox
from support.classic import Chromium, WebKit
from support.network import Network
from support.tab import Tab

HIDDEN_SECONDS = 390.0
"""Chromium slows the timers of a page again once it has been hidden for five minutes."""
GIVE_UP_SECONDS = 150.0
ATTEMPTS, ATTEMPT_SECONDS = 6, 3.0
"""Attempts to open a websocket in an outage, and until each is given up."""

Note = Callable[[object], None]


@pytest.fixture(params=[Firefox, WebKit, Chromium], ids=lambda engine: engine.name)
def browser(request: pytest.FixtureRequest, network: Network) -> Iterator[Any]:
    running = request.param(network)
    yield running
    running.stop()


@pytest.fixture
def probe() -> Iterator[ProbeServer]:
    running = ProbeServer()
    yield running
    running.stop()


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    return lambda text: request.node.user_properties.append(("measured", f"{request.node.name}: {text}"))


def _opened(browser, network: Network, probe: ProbeServer, *kind: str) -> Tab:
    """A page with an open websocket, named `socket`."""
    tab = browser.new_tab(*kind)
    tab.goto(probe.page(network.near))
    tab.call(scripts.OPEN, probe.websocket(network.near), "socket")
    tab.wait_for(scripts.IS_OPEN, "socket")
    return tab


def _kill_renderers(browser) -> None:
    pattern = re.compile(r"-contentproc.*\btab\b|WebKitWebProcess|--type=renderer")
    listed = subprocess.run(["ps", "-eo", "pid,pgid,args"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines()[1:]:
        pid, group, command = line.split(None, 2)
        if int(group) == browser.process.pid and pattern.search(command):
            os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize("how", ["closed tab", "reload", "navigation", "killed browser", "crashed renderer"])
def test_how_a_page_ends(browser, network, probe, note, how) -> None:
    tab = _opened(browser, network, probe)
    ended = time.monotonic()
    if how == "closed tab":
        browser.new_tab()  # a browser without any tab would end
        tab.close()
    elif how == "reload":
        tab.reload()
    elif how == "navigation":
        tab.goto("about:blank")
    elif how == "killed browser":
        browser.process.signal(signal.SIGKILL)
    else:
        _kill_renderers(browser)
    code = probe.wait_for_end(0, 30)
    note(f"{code} after {time.monotonic() - ended:.1f} s" if code else "the websocket stays open for 30 s")


def test_a_page_that_comes_back(browser, network, probe, note) -> None:
    tab = _opened(browser, network, probe)
    tab.call("() => addEventListener('pageshow', ({ persisted }) => { window.persisted = persisted; })")
    tab.goto(probe.page(network.near, "other"))
    code = probe.wait_for_end(0, 10)
    tab.back()
    tab.wait_for("() => !location.pathname.includes('other')")
    again = tab.call(
        "() => [window.persisted ?? null, window.socket?.readyState ?? null, window.socket?.events ?? null]"
    )
    note(f"navigation: {code}; back: [persisted, readyState, events] {again}")


def test_close_on_a_dead_network(browser, network, probe, note) -> None:
    tab = _opened(browser, network, probe)
    network.drop()
    tab.call("() => { socket.send('late'); socket.close(4000); }")
    closed = time.monotonic()
    tab.wait_for(scripts.HAS_CLOSED, "socket", seconds=GIVE_UP_SECONDS)
    note(f"[event, code, clean] {tab.call(scripts.EVENTS, 'socket')} {time.monotonic() - closed:.1f} s after close()")


@pytest.mark.parametrize("seconds", [8, 25])
def test_what_arrives_late(browser, network, probe, note, seconds) -> None:
    tab = _opened(browser, network, probe)
    network.drop()
    tab.call("() => { socket.send('late'); socket.close(4000); }")
    time.sleep(seconds)
    network.restore()
    restored = time.monotonic()
    code = probe.wait_for_end(0, GIVE_UP_SECONDS)
    note(f"{time.monotonic() - restored:.1f} s after the outage the server has {probe.messages(0)} and {code}")


def test_timers_of_a_hidden_page(browser, network, probe, note) -> None:
    # MiniBrowser opens tabs in the background; the others hide a tab behind the next.
    tab = _opened(browser, network, probe, *(["tab"] if browser.name == "webkitgtk" else []))
    tab.call(scripts.COUNT_TICKS)
    if browser.name != "webkitgtk":
        browser.new_tab()
    # Chromium's driver shows a tab that it is asked about, so it is asked only at the end.
    time.sleep(HIDDEN_SECONDS)
    states, found = tab.call(scripts.TICKS)
    note(f"{states}; interval ms, [ticks, largest gap ms] in 60 s early and in 75 s after 5 minutes: {found}")


@pytest.mark.parametrize("clean", [False, True], ids=["as-is", "six-aborted-requests"])
def test_kept_connections(browser, network, probe, note, clean) -> None:
    tab = browser.new_tab()
    url = probe.page(network.near)
    tab.goto(url)
    tab.call(scripts.FETCH_SIX, f"{url}slow")
    kept = probe.accepted
    network.drop()
    network.restore(drop_connections=True)
    if clean:
        tab.call(scripts.ABORT_SIX, url)
    tab.call(scripts.FETCH_UNTIL_ANSWERED, url)
    tab.wait_for("() => answered !== null", seconds=GIVE_UP_SECONDS)
    note(f"{kept} kept; answer after {tab.call('() => answered'):.1f} s, {probe.accepted - kept} new connections")


def test_handshakes_at_a_time(browser, network, probe, note) -> None:
    tab = browser.new_tab()
    tab.goto(probe.page(network.near))
    for name in ("first", "second"):
        tab.call(scripts.OPEN, probe.websocket(network.near, "slow"), name)
    time.sleep(2)
    note(f"{probe.handshakes} of 2 arrive while none is answered")


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "left-open"])
def test_attempts_in_an_outage(browser, network, probe, note, closed) -> None:
    tab = _opened(browser, network, probe)
    network.drop()
    tab.call("() => socket.close(4000)")
    names = [f"attempt{number}" for number in range(ATTEMPTS)]
    for name in names:
        tab.call(scripts.OPEN, probe.websocket(network.near), name)
        time.sleep(ATTEMPT_SECONDS)
        if closed:
            tab.call("(name) => window[name].close()", name)
    network.restore()
    restored = time.monotonic()
    tab.call(scripts.OPEN, probe.websocket(network.near), "last")
    tab.wait_for(scripts.IS_OPEN, "last", seconds=GIVE_UP_SECONDS)
    took = time.monotonic() - restored
    note(f"the next opens {took:.1f} s after the outage; earlier: {[tab.call(scripts.EVENTS, it) for it in names]}")


@pytest.mark.parametrize("probed", [False, True], ids=["websocket", "request-first"])
@pytest.mark.parametrize("seconds", [20, 60, 150])
def test_attempts_as_the_watchdog_makes_them(browser, network, probe, note, seconds, probed) -> None:
    tab = _opened(browser, network, probe)
    network.drop()
    lost = time.monotonic()
    tab.call("() => socket.close(4000)")
    tab.call(scripts.ATTEMPT_UNTIL_OPEN, probe.websocket(network.near), probe.page(network.near) if probed else None)
    time.sleep(lost + seconds - time.monotonic())
    before = tab.call("() => attempts.length")
    network.restore()
    restored = time.monotonic()
    tab.wait_for("() => opened", seconds=2 * GIVE_UP_SECONDS)
    made = tab.call("() => attempts.length")
    note(f"the page connects {time.monotonic() - restored:.1f} s after the outage, attempt {made} ({before} in it)")


def test_refused_attempts(browser, network, probe, note) -> None:
    tab = _opened(browser, network, probe)
    took = tab.call(scripts.FAIL_EIGHT_TIMES, f"ws://{network.near}:10009/")
    tab.call(scripts.OPEN, probe.websocket(network.near), "last")
    tab.wait_for(scripts.IS_OPEN, "last", seconds=GIVE_UP_SECONDS)
    note(f"they fail after {took} ms; the next, to another port, opens: {tab.call(scripts.EVENTS, 'last')}")


def test_an_interface_that_goes_down(browser, network, probe, note) -> None:
    tab = _opened(browser, network, probe)
    tab.call(scripts.HEAR_ONLINE)
    for state in ("down", "up"):
        subprocess.run([*network.at_far_end, "ip", "link", "set", "far", state], check=True)
        time.sleep(6)
        tab.call("(state) => heard.push([state, navigator.onLine])", state)
    note(f"{tab.call('() => heard')}; websocket {tab.call(scripts.EVENTS, 'socket')}")


def test_features(browser, network, probe, note) -> None:
    tab = browser.new_tab()
    tab.goto(probe.page(network.near))
    found = tab.call(scripts.FEATURES)
    tab.call(scripts.ADD_CONTROLS)
    tab.press("input", "a")
    tab.call("() => { document.body.inert = true; }")
    during = tab.call(scripts.FOCUSED)
    tab.type("b")
    box = tab.call(
        "() => { const { x, y } = document.querySelector('button').getBoundingClientRect(); return [x, y]; }"
    )
    tab.click_at(int(box[0]) + 5, int(box[1]) + 5)
    after = tab.call("() => [document.querySelector('input').value, clicks]")
    note(f"{found}; inert: focus {during}, typed and clicked {after}")
