"""How a page ends its session is the same in Firefox and WebKitGTK as in Chromium."""

from __future__ import annotations

import signal

from app_page import AppPage

GOING_AWAY = "1001"


def _wait_for_end(page: AppPage, sessions: int = 0) -> None:
    """Waits until the browser has ended one session with a close frame, and the given number of sessions is left.

    In Firefox a page of Streamlit 1.29 that is reloaded opens another connection, and ends it at once in either way.
    """

    def has_ended(metrics) -> bool:
        ended = metrics.value("sessions_closed_total", initiator="browser", code=GOING_AWAY)
        return ended >= 1 and metrics.value("sessions") == sessions

    page.sidecar.wait_for_metrics(has_ended)


def test_a_closed_tab_ends_its_session(open_app) -> None:
    page = open_app("--watchdog", "self")
    page.tab.close()
    _wait_for_end(page)


def test_a_reloaded_page_ends_its_session_and_starts_another(open_app) -> None:
    page = open_app("--watchdog", "self")
    first = page.session
    page.tab.reload()
    page.tab.wait_for_text("end of page")
    assert page.session != first
    _wait_for_end(page, sessions=1)


def test_a_navigation_ends_the_session(open_app) -> None:
    page = open_app("--watchdog", "self")
    page.tab.goto("about:blank")
    _wait_for_end(page)


def test_the_session_of_a_killed_browser_is_parked_until_its_window_ends(open_app, engine, network) -> None:
    browser = engine(network)
    try:
        page = open_app("--watchdog", "self", "--resume-window", "2s", browser=browser)
        browser.process.signal(signal.SIGKILL)
        page.sidecar.wait_for_metrics(lambda metrics: metrics.value("sessions") == 0)
        assert page.sidecar.metrics().value("parked_sessions_ended_total", result="expired") == 1
    finally:
        browser.stop()
