"""Takes the picture of the status page for docs/: real pages of a real app, which is frozen and later replaced.

Runs only if this file is named to pytest. It takes five minutes.
"""

from __future__ import annotations

import os
import random

from conftest import NEW, OLD
from support.app import environment
from support.relay import Relay
from support.sidecar import REPOSITORY, Sidecar
from support.status_page import StatusPage
from support.streamlit_server import StreamlitServer

IMAGES = REPOSITORY / "docs" / "images"
SECONDS = float(os.environ.get("HEARTBEAT_SIDECAR_TEST_PICTURE_SECONDS", 290))
"""The time span of the picture's chart."""
SIZE = {"width": 1120, "height": 848}
FROZEN_SECONDS = 8.0


def test_take_the_picture(chromium) -> None:
    old, new = StreamlitServer(environment(OLD)), StreamlitServer(environment(NEW))
    relay = Relay(old.address)
    sidecar = Sidecar(relay.address, "--watchdog", "self", "--watchdog-interval", "4s", "--watchdog-ack-timeout", "30s")
    context = chromium.new_context()
    pages = []

    def visit(count: int) -> None:
        for _ in range(count):
            pages.append(context.new_page())
            pages[-1].goto(f"http://{sidecar.address}/")
            pages[-1].get_by_text("end of page").wait_for()

    def work(seconds: float) -> None:
        """Moves a slider of a random page every 5 s."""
        for _ in range(round(seconds / 5)):
            random.choice(pages).locator(".stSlider").first.get_by_role("slider").press("ArrowRight")
            pages[-1].wait_for_timeout(5000)

    try:
        status = StatusPage(chromium, sidecar.admin, viewport=SIZE, color_scheme="light")
        visit(5)
        work(SECONDS * 0.35)
        with old.frozen():
            pages[-1].wait_for_timeout(FROZEN_SECONDS * 1000)
        work(SECONDS * 0.25)
        for page in pages[:4]:
            page.close()
        del pages[:4]
        relay.set_upstream(new.address)
        visit(6)
        pages.pop(0).close()
        work(SECONDS * 0.4)
        status.wait_for_answers(status.answers + 1)
        IMAGES.mkdir(exist_ok=True)
        status.page.screenshot(path=IMAGES / "status-page.png")
        for scheme, viewport in (("dark", SIZE), ("light", {"width": 390, "height": 844}), ("dark", {"width": 390, "height": 844})):
            status.page.emulate_media(color_scheme=scheme)
            status.page.set_viewport_size(viewport)
            status.wait_for_answers(status.answers + 1)
            status.page.screenshot(path=REPOSITORY / "target" / f"status-{scheme}-{viewport['width']}.png", full_page=True)
        status.expect_no_errors()
        status.close()
    finally:
        context.close()
        sidecar.stop()
        relay.stop()
        old.stop()
        new.stop()
