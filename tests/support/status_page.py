"""The sidecar's status page in a browser, with all that it says to the console and asks of the network."""

from __future__ import annotations

from playwright.sync_api import Browser, Locator, expect

# Tasks that keep the page from answering its user for 50 ms or more, in milliseconds.
_LONG_TASKS = """
window.longTasks = [];
new PerformanceObserver((list) => longTasks.push(...list.getEntries().map(({ duration }) => duration)))
  .observe({ type: "longtask", buffered: true });
"""


class StatusPage:
    """One tab with the page at `admin`, until closed. `options` are those of a browser context."""

    def __init__(
        self, browser: Browser, admin: str, view: str = "", *, own_clock: bool = False, **options: object
    ) -> None:
        """With `own_clock` its time goes on only as it is told to."""
        self.origin = f"http://{admin}"
        self.errors: list[str] = []
        self.asked: list[str] = []
        """The addresses of all requests."""
        self._context = browser.new_context(**options)
        self.page = self._context.new_page()
        if own_clock:
            self.page.clock.install()
        self.page.add_init_script(_LONG_TASKS)
        self.page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        self.page.on("console", lambda line: self.errors.append(f"{line.type}: {line.text}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{self.origin}/{view}")

    def wait_for_answers(self, count: int) -> None:
        """Until the page has shown that many answers since it was loaded."""
        self.page.wait_for_function("(count) => Number(document.body.dataset.answers) >= count", arg=count)

    @property
    def answers(self) -> int:
        """How many it has shown since it was loaded."""
        return int(self.page.evaluate("Number(document.body.dataset.answers ?? 0)"))

    @property
    def state(self) -> Locator:
        return self.page.locator("#state")

    @property
    def rows(self) -> Locator:
        return self.page.locator("#rows tr")

    @property
    def ended(self) -> Locator:
        return self.page.locator("#ended tr")

    def cell(self, row: Locator, column: str) -> Locator:
        """The cell of a session's row in the column of that name in `/sessions`."""
        names = self.page.locator("#columns button").evaluate_all("(all) => all.map(({ value }) => value)")
        return row.locator("th, td").nth(names.index(column))

    def sort_by(self, column: str) -> None:
        self.page.locator(f"#columns button[value={column}]").click()

    def long_tasks(self) -> list[float]:
        return self.page.evaluate("longTasks")

    def expect_untroubled(self) -> None:
        assert not self.errors, self.errors
        elsewhere = [url for url in self.asked if not url.startswith((f"{self.origin}/", "data:"))]
        assert not elsewhere, f"asked of another origin: {elsewhere}"
        expect(self.page.locator("body.lost")).to_have_count(0)

    def close(self) -> None:
        self._context.close()
