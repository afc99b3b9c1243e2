"""What a page shows its user of its connection and of the app's answers, and since when: noted in the page itself.

Times are the machine's, in seconds since the epoch, so that pages can be compared with one another and with the test.
"""

from __future__ import annotations

from dataclasses import dataclass

from playwright.sync_api import Frame

# The status in the corner ("Running…", "Connecting") and dialogs, as they change; texts of the app, as they first come.
SCRIPT = """
(() => {
  const shown = (window.shown = []);
  const texts = (window.texts = {});
  const look = () => {
    const signs = document.querySelectorAll("[data-testid=stStatusWidget], [role=dialog]");
    const text = [...signs].map((sign) => sign.textContent.trim()).join(" ").trim();
    if (text !== (shown.at(-1)?.text ?? "")) shown.push({ at: Date.now(), text });
    for (const { textContent } of document.querySelectorAll("[data-testid=stText]"))
      texts[textContent.trim()] ??= Date.now();
  };
  new MutationObserver(look).observe(document, { subtree: true, childList: true, characterData: true });
})();
"""

_CONNECTING = "/connecting/i.test(shown.at(-1)?.text ?? '')"


@dataclass(frozen=True)
class Shown:
    """What the user sees from a time on until the next comes."""

    at: float
    text: str

    @property
    def connecting(self) -> bool:
        return "connecting" in self.text.lower()


def history(frame: Frame) -> list[Shown]:
    """All that was shown since the page was loaded; that nothing was shown is a text too."""
    return [Shown(change["at"] / 1000, change["text"]) for change in frame.evaluate("shown")]


def wait_until_connecting(frame: Frame, seconds: float) -> None:
    """Until the page says that it has lost its connection."""
    frame.wait_for_function(_CONNECTING, timeout=seconds * 1000)


def wait_until_connected(frame: Frame, seconds: float) -> None:
    """Until the page says so no more."""
    frame.wait_for_function(f"!{_CONNECTING}", timeout=seconds * 1000)


def texts(frame: Frame) -> dict[str, float]:
    """Each text that the app has written since the page was loaded, and when for the first time."""
    return {text: at / 1000 for text, at in frame.evaluate("texts").items()}


def wait_for_text(frame: Frame, text: str, seconds: float) -> float:
    """Until the app has written `text` for the first time; returns when that was."""
    frame.wait_for_function("(text) => text in texts", arg=text, timeout=seconds * 1000)
    return texts(frame)[text]
