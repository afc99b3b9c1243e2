"""The journal app in a tab of any engine: what its user does, sees and has caused."""

from __future__ import annotations

from collections import Counter

from support import status_watch
from support.network import Network
from support.sidecar import Sidecar
from support.streamlit_server import StreamlitServer
from support.tab import Tab

_SLIDER = ".stSlider [role=slider], .stSlider input[type=range]"
_WORD = "input[aria-label=Word]"
_CHAT = "textarea[placeholder=Chat]"
_TABLE = ".stDataFrame canvas"
_ENTER, _RIGHT = "\ue007", "\ue014"
"""WebDriver's names of these keys."""


class AppPage:
    """One user. Counts the actions, to know the app's answers."""

    def __init__(self, tab: Tab, sidecar: Sidecar, server: StreamlitServer, network: Network) -> None:
        self.tab, self.sidecar = tab, sidecar
        self._journal = server.directory / "journal"
        self._lines_before = len(self._lines())
        self.url = f"http://{network.near}:{sidecar.address.split(':')[1]}/?page=engine"
        self._clicks, self._level = 0, 10

    def open(self) -> None:
        """Loads the app and waits until its script has finished, and the page has loaded the code of its controls."""
        self.tab.goto(self.url)
        self.tab.wait_for_text("end of page")
        for control in (_SLIDER, _WORD, _CHAT, _TABLE):
            self.tab.wait_for("(selector) => Boolean(document.querySelector(selector))", control)
        self.tab.call(f"() => {{ {status_watch.SCRIPT} }}")

    def act(self, kind: str, word: str = "word") -> str:
        """Does one thing and does not wait for its effect. Returns the text that the app will show."""
        if kind == "click":
            self._clicks += 1
            self.tab.click("button", "Count")
            return f"click {self._clicks}"
        if kind == "level":
            self._level += 1
            self.tab.press(_SLIDER, _RIGHT)
            return f"level {self._level}"
        if kind == "form":
            self.tab.press(_WORD, word)
            self.tab.click("button", "Submit")
            return f"form {word}"
        self.tab.press(_CHAT, word + _ENTER)
        return f"chat {word}"

    def _lines(self) -> list[str]:
        return self._journal.read_text().splitlines() if self._journal.exists() else []

    def executed(self, text: str) -> int:
        """How often the app has executed the action with that answer, in whichever session."""
        return Counter(line.split(" ", 1)[1] for line in self._lines()[self._lines_before :])[text]

    def wait_for_acks(self, count: int) -> None:
        """Waits until the sidecar has seen that many acks, of its own or of the app."""
        self.sidecar.wait_for_metrics(lambda metrics: metrics.value("acks_total") >= count)

    @property
    def session(self) -> str:
        """The id that the app has drawn for this session."""
        texts = "() => [...document.querySelectorAll('[data-testid=stText]')].map((it) => it.textContent.trim())"
        return next((text.split()[1] for text in self.tab.call(texts) if text.startswith("session ")), "")

    @property
    def dialogs(self) -> int:
        return self.tab.call("() => document.querySelectorAll('[role=dialog]').length")

    def seconds_to_notice(self, lost: float) -> float | None:
        """Seconds from `lost` until the page showed that it is connecting; `None` if it has not."""
        shown = [status_watch.Shown(change["at"] / 1000, change["text"]) for change in self.tab.call("() => shown")]
        return next((change.at - lost for change in shown if change.connecting and change.at >= lost), None)

    def wait_until_connecting(self, seconds: float) -> None:
        """Waits until the page shows that its connection is lost."""
        self.tab.wait_for("() => shown.some(({ text }) => /connecting/i.test(text))", seconds=seconds)

    def wait_until_connected(self, seconds: float) -> None:
        """Waits until the page no longer shows that its connection is lost."""
        self.tab.wait_for("() => !/connecting/i.test(shown.at(-1)?.text ?? '')", seconds=seconds)
