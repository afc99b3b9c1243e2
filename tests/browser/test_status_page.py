"""The status page in a real browser shows a real app's sessions, and stays responsive with thousands of them."""

from __future__ import annotations

import re
import signal
import time
from typing import Callable, Iterator

import pytest
from conftest import OLD
from playwright.sync_api import Browser, expect
from support import stream_watch
from support.crowd import Crowd
from support.sidecar import Sidecar
from support.status_page import StatusPage

OpenStatus = Callable[..., StatusPage]

old_only = pytest.mark.parametrize("server", [OLD], indirect=True)

SESSIONS = 5000
LONGEST_TASK_MS = 400.0
"""Milliseconds for which the page may block, on a busy machine. Users do not notice 50 ms."""
LATENCY = re.compile(r"^\d+(\.\d+)? m?s$")


@pytest.fixture
def open_status(chromium: Browser) -> Iterator[OpenStatus]:
    opened: list[StatusPage] = []

    def open_at(admin: str, view: str = "", **options: object) -> StatusPage:
        opened.append(StatusPage(chromium, admin, view, **options))
        return opened[-1]

    yield open_at
    for page in opened:
        page.close()


@old_only
def test_a_session_is_listed_while_it_is_open_and_then_with_the_reason_of_its_end(open_page, open_status) -> None:
    app = open_page()
    status = open_status(app.sidecar.admin)
    expect(status.rows).to_have_count(1)
    row = status.rows.first
    expect(status.cell(row, "version")).to_have_text(OLD)
    expect(status.cell(row, "last_ack_latency_seconds")).to_have_text("–")
    expect(status.state).to_have_text("ready")
    expect(status.page.locator("#upstreams tr")).to_have_text(re.compile(r"default\s*no\s*1"))

    app.heartbeat()
    expect(status.cell(row, "last_ack_latency_seconds")).to_have_text(LATENCY)
    expect(status.cell(row, "proof_rtt_seconds")).to_have_text(LATENCY)
    expect(status.cell(row, "browser_rtt_seconds")).to_have_text(LATENCY)
    expect(status.page.locator("#of-sidecar")).to_contain_text("1 ack, ")
    expect(status.page.locator("#of-upstream")).to_have_text("none")
    assert "1 ack" in (status.page.locator("#chart").get_attribute("aria-label") or "")
    mark = re.match(r"M([\d.]+)", status.page.locator("#chart .median.sidecar").get_attribute("d") or "")
    assert mark, "a mark in the chart"
    status.page.locator("#chart").hover(position={"x": float(mark[1]), "y": 100})
    expect(status.page.locator("#pointed")).to_contain_text("sidecar 1 ack, ")

    expect(status.ended).to_have_count(0)
    app.page.close()
    expect(status.rows).to_have_count(0)
    expect(status.page.get_by_text("No sessions.")).to_be_visible()
    expect(status.ended).to_have_count(1)
    expect(status.ended.first).to_contain_text(OLD)
    expect(status.ended.first).to_contain_text("browser")
    expect(status.ended.first).to_contain_text("1001 going away")
    status.expect_no_errors()


@old_only
def test_a_withheld_ack_is_shown_until_the_ack_is_sent(open_page, open_status, server) -> None:
    app = open_page("--heartbeat-stall-after", "200ms")
    status = open_status(app.sidecar.admin)
    latency = status.cell(status.rows.first, "last_ack_latency_seconds")
    with server.frozen():
        stream_watch.send_heartbeat(app.frame)
        expect(latency).to_have_text("withheld")
        expect(latency).to_have_class("bad")
        expect(status.page.locator("#withheld-now")).to_have_text("1")
        assert status.page.locator("#withheld").get_attribute("d"), "a mark in the chart"
    stream_watch.wait_for_acks(app.frame, 1)
    expect(latency).to_have_text(LATENCY)
    expect(status.page.locator("#withheld-now")).to_have_text("0")
    expect(status.page.locator("#withheld-sum")).to_contain_text("1 stalled")
    status.expect_no_errors()


@old_only
def test_a_drain_is_shown_and_afterwards_that_the_sidecar_does_not_answer(open_page, open_status) -> None:
    app = open_page("--drain-delay", "20s", "--drain-timeout", "40s")
    status = open_status(app.sidecar.admin)
    expect(status.state).to_have_text("ready")
    app.sidecar.process.signal(signal.SIGTERM)
    expect(status.state).to_have_text("draining: 1 session left")
    expect(status.page).to_have_title(re.compile("^draining, "))
    status.expect_no_errors()
    app.sidecar.process.signal(signal.SIGTERM)
    app.sidecar.process.wait(20)
    expect(status.state).to_contain_text("no response since", timeout=30_000)


@old_only
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_color_schemes_have_enough_contrast_and_fit_a_phone(open_page, open_status, scheme) -> None:
    app = open_page()
    app.heartbeat()
    status = open_status(app.sidecar.admin, color_scheme=scheme, viewport={"width": 390, "height": 844})
    status.wait_for_answers(1)
    expect(status.rows).to_have_count(1)
    # The contrast ratio of WCAG 2.2, of every visible text on the page's background.
    contrasts = status.page.evaluate("""() => {
      const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).map((part) => part / 255)
          .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const back = light(getComputedStyle(document.body).backgroundColor);
      const texts = [...document.querySelectorAll("body *")].filter((element) =>
        [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) && element.checkVisibility());
      const marked = ["bad", "warn"].map((name) => Object.assign(document.body.appendChild(document.createElement("i")), { className: name }));
      return [back, ...[...texts, ...marked].map((element) => {
        const front = light(getComputedStyle(element)[element instanceof SVGElement ? "fill" : "color"]);
        return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
      })];
    }""")
    back, ratios = contrasts[0], contrasts[1:]
    assert (back > 0.9) if scheme == "light" else (back < 0.02), back
    assert len(ratios) > 40 and min(ratios) >= 4.5, sorted(ratios)[:3]
    width = status.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, f"the page is {width} pixels wide on a phone with 390: only its tables may scroll"
    status.expect_no_errors()


@old_only
def test_without_javascript_the_page_links_to_sessions_metrics_and_json(open_page, open_status) -> None:
    status = open_status(open_page().sidecar.admin, java_script_enabled=False)
    for path in ("sessions", "metrics", "status.json"):
        expect(status.page.locator(f"noscript a[href={path!r}]")).to_be_visible()
    assert len(status.requested_urls) == 1


@old_only
def test_the_apps_version_is_escaped_and_filter_and_sort_order_survive_a_reload(open_page, open_status) -> None:
    status = open_status(open_page().sidecar.admin)
    name = "<img src=x onerror=document.title='pwned'>"

    def renamed(route) -> None:
        answer = route.fetch()
        data = answer.json()
        for session in data["sessions"]:
            session["version"] = name
        route.fulfill(response=answer, json=data)

    status.page.route("**/status.json?*", renamed)
    expect(status.cell(status.rows.first, "version")).to_have_text(name)
    assert status.page.locator("#rows img").count() == 0
    status.page.unroute("**/status.json?*")

    status.sort_by("bytes_to_browser")
    status.page.get_by_label("filter").fill("no such upstream")
    expect(status.page.get_by_text("No session matches the filter.")).to_be_visible()
    status.page.reload()
    expect(status.page.get_by_label("filter")).to_have_value("no such upstream")
    expect(status.page.locator("th[aria-sort=descending] button")).to_have_attribute("value", "bytes_to_browser")
    expect(status.page.get_by_text("No session matches the filter.")).to_be_visible()
    status.expect_no_errors()


@old_only
@pytest.mark.parametrize("idle", ["paused", "hidden"])
def test_a_paused_or_hidden_page_sends_no_requests(open_page, open_status, idle) -> None:
    def hide(hidden: bool) -> None:
        status.page.evaluate(
            "(hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
            " document.dispatchEvent(new Event('visibilitychange')); }",
            hidden,
        )

    status = open_status(open_page().sidecar.admin, own_clock=True)
    status.wait_for_answers(1)
    status.page.clock.run_for(2100)
    status.wait_for_answers(2)
    requests = len(status.requested_urls)
    status.page.get_by_role("button", name="Pause").click() if idle == "paused" else hide(True)
    status.page.clock.run_for(60_000)
    assert len(status.requested_urls) == requests

    status.page.get_by_role("button", name="Resume", exact=True).click() if idle == "paused" else hide(False)
    status.wait_for_answers(3)
    assert len(status.requested_urls) > requests
    status.expect_no_errors()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    running = Crowd(OLD)
    yield running
    running.stop()


def test_thousands_of_sessions_do_not_freeze_the_page(crowd, open_status, record_property) -> None:
    sidecar = Sidecar(crowd.address)
    try:
        status = open_status(sidecar.admin)
        started = time.monotonic()
        crowd.open(sidecar.address, SESSIONS)
        opened = time.monotonic() - started
        crowd.send_heartbeats()
        sidecar.wait_for_metrics(lambda metrics: metrics.value("acks_total") >= SESSIONS, 120)
        expect(status.page.locator("#live")).to_have_text(f"{SESSIONS:,}", timeout=30_000)
        expect(status.rows).to_have_count(100)
        expect(status.page.locator("#shown")).to_have_text("first 100 of 5,000")
        status.wait_for_answers(status.answers + 4)

        started = time.monotonic()
        status.page.get_by_label("filter").fill("4321")
        expect(status.rows).to_have_count(1)
        filtered = time.monotonic() - started
        status.page.get_by_label("filter").fill("")
        started = time.monotonic()
        status.sort_by("id")
        expect(status.rows.first.locator("th")).to_have_text(str(SESSIONS))
        sorted_ = time.monotonic() - started
        answers = status.page.evaluate(
            "performance.getEntriesByType('resource').filter(({ name }) => name.includes('status.json'))"
            ".map(({ duration, encodedBodySize }) => [duration, encodedBodySize])"
        )
        crowd.disconnect_browsers()
        expect(status.page.locator("#live")).to_have_text("0", timeout=30_000)
        expect(status.ended).to_have_count(50)
        status.expect_no_errors()
    finally:
        sidecar.stop()
    longest = max(status.long_tasks(), default=0.0)
    slowest, largest = max(duration for duration, _ in answers), max(size for _, size in answers)
    record_property(
        "status page",
        f"{SESSIONS} sessions, opened in {opened:.1f} s: longest task {longest:.0f} ms "
        f"of {len(status.long_tasks())} over 50 ms; filtered in {filtered * 1000:.0f} ms, sorted in {sorted_ * 1000:.0f} ms; "
        f"{len(answers)} answers, the slowest {slowest:.0f} ms, the largest {largest / 1000:.0f} kB",
    )
    assert longest < LONGEST_TASK_MS
    assert max(filtered, sorted_) < 5
    assert largest < 200_000, "a status response is bounded, including its 2,048 newest acks"
