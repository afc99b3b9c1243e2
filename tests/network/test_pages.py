"""Pages that are reloaded, closed or opened twice are sessions of their own, and files pass after an outage."""

from __future__ import annotations

import random

import pytest
from actor import RESUMPTION
from conftest import NETWORK
from playwright.sync_api import expect
from support import stream_watch
from support.app import App
from support.app_page import AppPage
from support.sidecar import Sidecar

OLDEST_AND_NEWEST = [NETWORK[0], NETWORK[-1]]
SILENT_SECONDS = 20.0
SOON_SECONDS = 5.0

each = pytest.mark.parametrize("app", OLDEST_AND_NEWEST, ids=lambda version: version.name, indirect=True)


@pytest.fixture
def page(chromium, app: App, network, request):
    opened = AppPage(chromium, Sidecar(app.server.address, *RESUMPTION.arguments))
    try:
        opened.open()
        yield opened
    except BaseException:
        opened.save_evidence(request.node.name)
        raise
    finally:
        opened.close()


def _expect_sessions(page: AppPage, count: int) -> None:
    """A parked session counts as a session: its app still sees it."""
    page.sidecar.wait_for_metrics(lambda metrics: metrics.value("sessions") == count, SOON_SECONDS)


@each
def test_files_pass_in_both_directions_after_an_outage(app, page, network) -> None:
    before, after = (random.Random(seed).randbytes(2_000_000) for seed in (1, 2))
    page.check_upload_and_download(before)
    stream_watch.wait_for_acks(page.frame, 1)
    network.drop()
    page.page.wait_for_timeout(SILENT_SECONDS * 1000)
    network.restore()
    page.expect_connected()
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name="Download", exact=True).click()
    assert download.value.suggested_filename == "known.bin"
    expect(page.frame.get_by_text("upload random.bin 2000000")).to_be_visible()
    page.check_upload_and_download(after)


@each
def test_a_closed_tab_ends_its_session_at_once(app, page) -> None:
    _expect_sessions(page, 1)
    page.page.close()
    _expect_sessions(page, 0)


@each
def test_a_reloaded_page_ends_its_old_session_at_once(app, page) -> None:
    page.move_slider("Level")
    page.expect_text("run 2")
    page.open()
    page.expect_text("run 1")
    _expect_sessions(page, 1)


@each
def test_two_tabs_are_two_sessions(app, page, network) -> None:
    page.move_slider("Level")
    page.expect_text("run 2")
    with page.page.context.expect_page() as opening:
        page.page.evaluate("window.open(location.href)")
    second = opening.value
    expect(second.get_by_text("run 1", exact=True)).to_be_visible()
    page.expect_text("run 2")
    _expect_sessions(page, 2)
    second.close()
    _expect_sessions(page, 1)
    page.move_slider("Level")
    page.expect_text("run 3")
