"""The notice about a lost connection on real pages: what a user sees, types and hears. The connection itself stays up."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterator

import pytest
from conftest import NEW, OLD
from playwright.sync_api import Browser, Locator, Page, expect
from support.app import environment
from support.sidecar import REPOSITORY
from support.streamlit_server import StreamlitServer

VERSIONS = ["1.29.0", OLD, NEW]
SOURCE = (REPOSITORY / "src" / "proxy" / "watchdog" / "notice.js").read_text()
SCRIPT = f"(() => {{ 'use strict'; {SOURCE}\n window.testedNotice = notice; }})();"
QUIET, SHOWN, PAUSED = 1900, 2100, 7200
"""Milliseconds since the loss: nothing is shown yet, the notice is shown, input is paused."""
READ = 20_000
"""Milliseconds after which a notice about lost inputs disappears."""

LOAD = 60_000
"""Milliseconds for the app to load or run on a busy machine, at most."""

DESKTOP, PHONE = {"width": 1100, "height": 640}, {"width": 360, "height": 640}

VISIBLE_CONTROLS = """() => {
  const boxes = [];
  for (const control of document.querySelectorAll("a, button, input, textarea, select, [role=slider], [role=button]")) {
    const { left, top, right, bottom } = control.getBoundingClientRect();
    const at = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
    if (right > left && at && (control.contains(at) || at.contains(control))) {
      boxes.push({ left, top, right, bottom, name: control.outerHTML.slice(0, 80) });
    }
  }
  return boxes;
}"""

Open = Callable[..., Page]


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[StreamlitServer]:
    running = StreamlitServer(environment(request.param), Path(__file__).with_name("notice_app.py"))
    yield running
    running.stop()


@pytest.fixture
def open_page(chromium: Browser, server: StreamlitServer) -> Iterator[Open]:
    """Opens the app with the notice's script. From then on only the test moves the page's clock."""
    contexts = []

    def open_with(query: str = "", **options) -> Page:
        context = chromium.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(LOAD)
        page.clock.install()
        page.add_init_script(SCRIPT)
        page.goto(f"http://{server.address}/{query}")
        expect(page.get_by_text("end of page")).to_be_attached(timeout=LOAD)
        expect(page.get_by_test_id("stStatusWidget")).to_have_count(0, timeout=LOAD)
        page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 30)
        return page

    yield open_with
    for context in contexts:
        context.close()


def _card(page: Page) -> Locator:
    return page.locator("heartbeat-notice .card:not(.quiet)")


def _lose(page: Page, milliseconds: int) -> None:
    page.evaluate("testedNotice.lost()")
    page.clock.run_for(milliseconds)


def _background(page: Page) -> str:
    return _card(page).evaluate("(card) => getComputedStyle(card).backgroundColor")


def test_a_short_loss_shows_nothing(open_page) -> None:
    page = open_page()
    _lose(page, QUIET)
    expect(_card(page)).to_have_count(0)
    page.evaluate("testedNotice.resumed()")
    page.clock.run_for(PAUSED)
    expect(page.locator("heartbeat-notice [role=status]")).to_have_text("", use_inner_text=True)
    expect(_card(page)).to_have_count(0)


def test_a_loss_is_announced_once_and_its_end_too(open_page) -> None:
    page = open_page()
    _lose(page, SHOWN)
    status = page.get_by_role("status").filter(has_text="Reconnecting")
    expect(status).to_have_text("Reconnecting… What you entered is kept.")
    assert "status: Reconnecting… What you entered is kept." in page.locator("heartbeat-notice").aria_snapshot()
    status.evaluate(
        """(status) => {
          window.announced = [];
          new MutationObserver(() => announced.push(status.textContent)).observe(status, { childList: true });
        }"""
    )
    for _ in range(4):
        page.evaluate("testedNotice.lost()")  # each failed attempt
        page.clock.run_for(PAUSED)
    page.evaluate("testedNotice.resumed()")
    expect(_card(page)).to_have_count(0)
    page.clock.run_for(PAUSED)
    paused = "Reconnecting… Input is paused. What you entered is kept."
    assert page.evaluate("announced.filter(Boolean)") == [paused, "Connected again."]
    expect(page.locator("heartbeat-notice")).to_have_text("", use_inner_text=True)


def test_while_input_is_paused_the_page_takes_none_and_a_half_typed_text_is_kept(open_page) -> None:
    page = open_page()
    field = page.get_by_label("Customer")
    field.press_sequentially("half typed")
    field.evaluate("(field) => field.setSelectionRange(5, 10)")
    _lose(page, PAUSED)
    expect(_card(page)).to_contain_text("Input is paused.")
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        page.keyboard.type("x")
        reached.add(page.evaluate("document.activeElement.matches('input, textarea, button, a, [role=slider]')"))
    assert reached == {False}, "Tab reaches a control of the app"
    page.get_by_role("button", name="Save", include_hidden=True).click(force=True)
    page.evaluate("testedNotice.resumed()")
    expect(field).to_be_focused()
    expect(page.locator("[inert]")).to_have_count(0)
    page.keyboard.type("done")
    expect(field).to_have_value("half done")
    # The first run's text is still there: neither taking the focus nor a key has committed the value.
    page.clock.resume()
    expect(page.get_by_text("run 1 for nobody", exact=True)).to_be_visible()
    field.press("Enter")
    expect(page.get_by_text("run 2 for half done", exact=True)).to_be_visible(timeout=LOAD)


def test_a_page_whose_input_is_paused_can_still_be_scrolled(open_page) -> None:
    page = open_page()
    _lose(page, PAUSED)
    top = "() => [...document.querySelectorAll('main, section')].reduce((sum, area) => sum + area.scrollTop, 0)"
    before = page.evaluate(top)
    page.mouse.move(700, 300)
    page.mouse.wheel(0, -200 if before else 200)
    page.wait_for_function(f"(before) => ({top})() !== before", arg=before)


@pytest.mark.parametrize("query", ["", "?embed=true", "?embed=true&embed_options=show_toolbar"])
def test_the_notice_covers_no_control(open_page, query) -> None:
    page = open_page(query)
    for size in (DESKTOP, PHONE):
        page.set_viewport_size(size)
        page.wait_for_function("(width) => document.querySelector('.stApp').clientWidth === width", arg=size["width"])
        page.clock.run_for(1000)
        controls = page.evaluate(VISIBLE_CONTROLS)
        assert controls
        for milliseconds in (SHOWN, PAUSED - SHOWN):
            _lose(page, milliseconds)
            box = _card(page).bounding_box()
            assert box and box["x"] >= 0 and box["y"] >= 0
            right, bottom = box["x"] + box["width"], box["y"] + box["height"]
            assert right <= size["width"] and bottom <= size["height"]
            covered = [
                it["name"]
                for it in controls
                if it["left"] < right and it["right"] > box["x"] and it["top"] < bottom and it["bottom"] > box["y"]
            ]
            assert not covered, covered
        page.evaluate("testedNotice.ended()")


def test_the_notice_has_the_colors_of_the_apps_theme(open_page) -> None:
    for system, theme in (("light", "dark"), ("dark", "light")):
        page = open_page(f"?embed=true&embed_options={theme}_theme", color_scheme=system)
        _lose(page, SHOWN)
        assert _background(page) == page.locator(".stApp").evaluate("(app) => getComputedStyle(app).backgroundColor")
        dark = sum(int(part) for part in _background(page).strip("rgb()").split(",")) < 300
        assert dark == (theme == "dark")


def test_the_notice_needs_no_inline_style_and_turns_nothing_if_motion_is_unwanted(open_page) -> None:
    page = open_page(reduced_motion="reduce")
    page.evaluate(
        """() => document.head.append(Object.assign(document.createElement("meta"), {
          httpEquiv: "Content-Security-Policy", content: "style-src 'self'" }))"""
    )
    violations = []
    page.on("console", lambda line: violations.append(line.text) if "Content Security Policy" in line.text else None)
    page.evaluate("testedNotice.unsent(1)")
    page.clock.run_for(1)
    assert not violations, violations
    position, motion = (
        page.locator(f"heartbeat-notice {part}").evaluate(f"(part) => getComputedStyle(part).{name}")
        for part, name in ((".card", "position"), ("i", "animationName"))
    )
    assert (position, motion) == ("absolute", "none")


def test_lost_inputs_are_named_until_the_user_dismisses_them_or_had_time_to_read(open_page) -> None:
    page = open_page()
    page.evaluate("testedNotice.unsent(1)")
    page.clock.run_for(1)
    expect(page.get_by_role("status").filter(has_text="not sent")).to_contain_text("Your last input was not sent.")
    page.clock.run_for(READ - 1000)
    expect(_card(page)).to_be_visible()
    page.clock.run_for(1500)
    expect(_card(page)).to_have_count(0)

    page.evaluate("testedNotice.unsent(2)")
    page.clock.run_for(1)
    expect(_card(page)).to_contain_text("Your last 2 inputs were not sent.")
    page.get_by_role("button", name="Dismiss").click()
    expect(_card(page)).to_have_count(0)


def test_lost_inputs_are_named_again_after_a_loss(open_page) -> None:
    page = open_page()
    page.evaluate("testedNotice.unsent(1)")
    _lose(page, PAUSED)
    expect(_card(page)).to_contain_text("Input is paused.")
    page.evaluate("testedNotice.ended()")
    expect(page.locator("[inert]")).to_have_count(0)
    expect(_card(page)).to_contain_text("Your last input was not sent.")
