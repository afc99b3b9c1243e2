"""One user of `journal_app.py`: what the user does, what the page shows and what the app has executed."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Error, Locator, TimeoutError, expect
from support import stream_watch
from support.app import App
from support.app_page import AppPage
from support.host_page import HostedPage
from support.version import Version

SCRIPT = Path(__file__).with_name("journal_app.py")
KINDS = ("click", "level", "text", "cell", "form", "chat")
WORK = "work"
"""A script that runs for half a minute; it is started before the outage."""
WORK_STEPS, WORK_SECONDS = 60, 30.0
"""As in `journal_app.py`."""
_BUTTONS = {"click": "Count", "form": "Submit", WORK: "Work"}
_ALLOWED_MILLISECONDS = 1_000
"""For a control that the page may have removed."""
_BUSY_MILLISECONDS = 5_000
"""For a control that is drawn again while the machine is busy."""
_CELL_ATTEMPTS = 3
"""The table misses a click while it is drawn."""


@dataclass(frozen=True)
class Way:
    """How a page meets an outage: the sidecar's arguments."""

    name: str
    arguments: tuple[str, ...]
    hosted: bool = False
    """The page is embedded in another one, which requests heartbeats."""

    def __str__(self) -> str:
        return self.name


WITHOUT = Way("without", ("--watchdog", "off"))
WATCHDOG = Way("watchdog", ("--watchdog", "self", "--resume-enabled", "false"))
RESUMPTION = Way("resumption", ("--watchdog", "self"))
HOSTED = Way("hosted", ("--watchdog", "host"), hosted=True)
ALL_WAYS = (WITHOUT, WATCHDOG, RESUMPTION, HOSTED)
_HOST_INTERVAL_SECONDS, _HOST_ACK_TIMEOUT_SECONDS, _ENDLESS = 10.0, 5.0, 1_000_000


@dataclass
class User:
    """One page with a sidecar of its own. Users of one version share the server."""

    name: str
    version: Version
    way: Way
    app: App
    page: AppPage
    words: int = 0
    """Makes each text of this user unique."""

    def __str__(self) -> str:
        return f"{self.name} {self.version.name} {self.way}"

    def open(self) -> None:
        """Opens or reloads the page."""
        self.page.open(f"?page={self.name}")
        if isinstance(self.page, HostedPage):
            times = {"interval": _HOST_INTERVAL_SECONDS, "ack_timeout": _HOST_ACK_TIMEOUT_SECONDS}
            self.page.start_heartbeats(_ENDLESS, **times)

    def wait_for_ack(self) -> None:
        """Waits until the page has received an ack since it was opened: before that it notices no outage."""
        if self.way is not WITHOUT:
            stream_watch.wait_for_acks(self.page.frame, 1)

    def click(self) -> str | None:
        """Clicks the button. Returns what the page will show, or `None` if the page does not work."""
        with contextlib.suppress(Error):
            line = self.prepare("click")
            return line if self.act("click") else None
        return None

    def prepare(self, kind: str) -> str:
        """Does what sends nothing yet, such as typing. Returns what the page shows once the app has executed `act`."""
        self.words += 1
        word = f"{self.name}-{self.words}"
        if kind == "click":
            return f"click {self._shown_number('click') + 1}"
        if kind == "level":
            self._slider.focus()
            return f"level {self._shown_number('level') + 1}"
        if kind == "cell":
            return f"cell {self._edit_cell(str(self.words))}"
        if kind == WORK:
            return "work done"
        self._field(kind).fill(word)
        return f"{kind} {word}"

    def act(self, kind: str) -> bool:
        """Sends the prepared action, if the page allows it, and does not wait for its effect."""
        if self.page.frame.locator("[inert]").count():
            return False
        with contextlib.suppress(TimeoutError):
            if kind == "level":
                before = self._slider_value()
                self._slider.press("ArrowRight", timeout=_BUSY_MILLISECONDS)
                return self._slider_value() > before
            if kind in _BUTTONS:
                button = self.page.frame.get_by_role("button", name=_BUTTONS[kind])
                allowed = button.is_enabled(timeout=_ALLOWED_MILLISECONDS)
                if allowed:
                    button.click(timeout=_BUSY_MILLISECONDS)
                return allowed
            field = self._field(kind)
            allowed = field.is_enabled(timeout=_ALLOWED_MILLISECONDS)
            if allowed:
                field.press("Enter", timeout=_BUSY_MILLISECONDS)
            return allowed and (kind != "chat" or self._has_taken_chat())
        return False

    def _has_taken_chat(self) -> bool:
        """The field is emptied by what it takes. A page that pauses input at this moment takes nothing."""
        with contextlib.suppress(AssertionError):
            expect(self._field("chat")).to_have_value("", timeout=_BUSY_MILLISECONDS)
            return True
        return False

    def _shown_number(self, kind: str) -> int:
        text = self.page.frame.get_by_text(re.compile(rf"^{kind} \d+$"))
        return int(text.inner_text(timeout=_BUSY_MILLISECONDS).split()[1])

    @property
    def _slider(self) -> Locator:
        return self.page.frame.locator(".stSlider").get_by_role("slider")

    @property
    def _cell_editor(self) -> Locator:
        return self.page.frame.locator("#portal input, #portal textarea").first

    def _edit_cell(self, number: str) -> str:
        """Types a number into the table's cell and returns what the cell's editor shows.

        An element that scrolls the table covers its canvas, so the click is the mouse's.
        """
        canvas = self.page.frame.locator(".stDataFrame canvas").first
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None, "the table is not shown"
        for _ in range(_CELL_ATTEMPTS):
            self.page.page.mouse.dblclick(box["x"] + 60, box["y"] + 50)
            with contextlib.suppress(TimeoutError):
                self._cell_editor.fill(number, timeout=_ALLOWED_MILLISECONDS)
                break
        return self._cell_editor.input_value(timeout=_ALLOWED_MILLISECONDS)

    def _slider_value(self) -> int:
        return int(self._slider.evaluate("(slider) => slider.ariaValueNow ?? slider.value"))

    def _field(self, kind: str) -> Locator:
        if kind == "cell":
            return self._cell_editor
        if kind == "chat":
            return self.page.frame.get_by_placeholder("Chat")
        return self.page.frame.get_by_role("textbox", name={"text": "Text", "form": "Word"}[kind])

    def journal(self) -> list[str]:
        """What the app has executed for this page: kind and value of each action, in order."""
        file = self.app.server.directory / "journal"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{self.name} ")]

    def shows(self, text: str, seconds: float = 0.0) -> bool:
        """Whether the page shows the text in time."""
        found = self.page.frame.get_by_text(text, exact=True).first
        if not seconds:
            return found.is_visible()
        with contextlib.suppress(TimeoutError):
            found.wait_for(timeout=seconds * 1000)
            return True
        return False

    @property
    def session(self) -> str:
        return self.page.frame.get_by_text("session ").first.inner_text()
