"""The sidecar's status page in a browser, with its console messages and its requests."""

from __future__ import annotations

from playwright.sync_api import Browser, Locator, expect

# Tasks that block the page for 50 ms or more, in milliseconds.
_LONG_TASKS = """
window.longTasks = [];
new PerformanceObserver((list) => longTasks.push(...list.getEntries().map(({ duration }) => duration)))
  .observe({ type: "longtask", buffered: true });
"""


class StatusPage:
    """One tab with the page at `admin`. `options` are those of a browser context."""

    def __init__(
        self, browser: Browser, admin: str, view: str = "", *, own_clock: bool = False, **options: object
    ) -> None:
        """With `own_clock` the test controls the page's clock."""
        self.origin = f"http://{admin}"
        self.errors: list[str] = []
        self.requested_urls: list[str] = []
        self._context = browser.new_context(**options)
        self.page = self._context.new_page()
        if own_clock:
            self.page.clock.install()
        self.page.add_init_script(_LONG_TASKS)
        self.page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        self.page.on("console", lambda line: self.errors.append(f"{line.type}: {line.text}"))
        self.page.on("request", lambda request: self.requested_urls.append(request.url))
        self.page.goto(f"{self.origin}/{view}")

    def wait_for_answers(self, count: int) -> None:
        """Waits until the page has shown that many answers since it was loaded."""
        self.page.wait_for_function("(count) => Number(document.body.dataset.answers) >= count", arg=count)

    @property
    def answers(self) -> int:
        """Answers shown since the page was loaded."""
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

    def expect_no_errors(self) -> None:
        assert not self.errors, self.errors
        foreign = [url for url in self.requested_urls if not url.startswith((f"{self.origin}/", "data:"))]
        assert not foreign, f"requested from another origin: {foreign}"
        expect(self.page.locator("body.lost")).to_have_count(0)

    def close(self) -> None:
        self._context.close()
