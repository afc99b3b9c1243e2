"""One tab of a browser of any engine: what its user does and sees."""

from __future__ import annotations

import abc
from typing import Any

from support import polling

_SECONDS = 30.0

_CLICK = """(selector, text) => {
  const found = [...document.querySelectorAll(selector)].find((element) => element.textContent.includes(text));
  found?.click();
  return Boolean(found);
}"""
_FOCUS = "(selector) => { const it = document.querySelector(selector); it?.focus(); return Boolean(it); }"
_TEXT = "(text) => [...document.querySelectorAll('[data-testid=stText]')].some((it) => it.textContent.trim() === text)"


class Tab(abc.ABC):
    """Functions are JavaScript function expressions; their arguments and results are JSON."""

    @abc.abstractmethod
    def goto(self, url: str) -> None:
        """Returns when the page is loaded."""

    @abc.abstractmethod
    def reload(self) -> None:
        """As by F5."""

    @abc.abstractmethod
    def back(self) -> None:
        """As by the button of that name."""

    @abc.abstractmethod
    def close(self) -> None:
        """As the user closes a tab."""

    @abc.abstractmethod
    def call(self, function: str, *arguments: Any) -> Any:
        """Calls the function in the page and returns its result, or that of its promise."""

    @abc.abstractmethod
    def screenshot(self) -> bytes: ...

    @abc.abstractmethod
    def _perform(self, actions: list[dict[str, Any]]) -> None:
        """WebDriver's actions, the same in both protocols."""

    def wait_for(self, function: str, *arguments: Any, seconds: float = _SECONDS) -> Any:
        """Waits until the function returns something true; returns that."""
        found: list[Any] = []

        def is_true() -> bool:
            found[:] = [self.call(function, *arguments)]
            return bool(found[0])

        polling.wait_until(is_true, lambda: f"not true: {function} {arguments}", seconds)
        return found[0]

    def wait_for_text(self, text: str, seconds: float = _SECONDS) -> None:
        """Waits until the app shows that text."""
        self.wait_for(_TEXT, text, seconds=seconds)

    def click(self, selector: str, text: str = "") -> None:
        """Waits for an element of that kind that contains the text, and clicks it, wherever the page moves it."""
        self.wait_for(_CLICK, selector, text)

    def press(self, selector: str, keys: str) -> None:
        """Waits for the element, focuses it, and presses the keys one after the other."""
        self.wait_for(_FOCUS, selector)
        self.type(keys)

    def click_at(self, x: int, y: int) -> None:
        """Moves the mouse there and clicks."""
        move = {"type": "pointerMove", "duration": 0, "x": x, "y": y}
        button = [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        self._perform([{"type": "pointer", "id": "mouse", "actions": [move, *button]}])

    def type(self, keys: str) -> None:
        """Presses the keys one after the other, wherever the focus is."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._perform([{"type": "key", "id": "keyboard", "actions": strokes}])
