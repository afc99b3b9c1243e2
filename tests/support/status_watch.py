"""Records inside a page what it shows about its connection and which texts of the app, with times.

Times are seconds since the epoch, so they can be compared between pages and with the test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Frame

# Records each change of the status in the corner ("Running…", "Connecting") and of dialogs, and each new text.
SCRIPT = """
(() => {
  const shown = (window.shown = []);
  const texts = (window.texts = {});
  const record = () => {
    const signs = document.querySelectorAll("[data-testid=stStatusWidget], [role=dialog]");
    const text = [...signs].map((sign) => sign.textContent.trim()).join(" ").trim();
    if (text !== (shown.at(-1)?.text ?? "")) shown.push({ at: Date.now(), text });
    for (const { textContent } of document.querySelectorAll("[data-testid=stText]"))
      texts[textContent.trim()] ??= Date.now();
  };
  new MutationObserver(record).observe(document, { subtree: true, childList: true, characterData: true });
})();
"""

_CONNECTING = "/connecting/i.test(shown.at(-1)?.text ?? '')"


@dataclass(frozen=True)
class Shown:
    """The status text that the user sees from `at` until the next change."""

    at: float
    text: str

    @property
    def connecting(self) -> bool:
        return "connecting" in self.text.lower()


def history(frame: Frame) -> list[Shown]:
    """All status texts since the page was loaded; no status is the empty text."""
    return [Shown(change["at"] / 1000, change["text"]) for change in frame.evaluate("shown")]


def wait_until_connecting(frame: Frame, seconds: float) -> None:
    """Waits until the page shows that its connection is lost."""
    frame.wait_for_function(_CONNECTING, timeout=seconds * 1000)


def wait_until_connected(frame: Frame, seconds: float) -> None:
    """Waits until the page no longer shows that its connection is lost."""
    frame.wait_for_function(f"!{_CONNECTING}", timeout=seconds * 1000)


def texts(frame: Frame) -> dict[str, float]:
    """Each text of the app since the page was loaded, with the time of its first appearance."""
    return {text: at / 1000 for text, at in frame.evaluate("texts").items()}


def wait_for_text(frame: Frame, text: str, seconds: float) -> float:
    """Waits until `text` appears; returns the time of its first appearance."""
    frame.wait_for_function("(text) => text in texts", arg=text, timeout=seconds * 1000)
    return texts(frame)[text]
