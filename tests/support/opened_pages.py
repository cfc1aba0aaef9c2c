"""A page in a browser."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, Page


class Opened:
    """A page in a browser, with everything that it asked for and complained of."""

    def __init__(
        self, browser: Browser, path: Path, width: int = 1280, scheme: str = "light", **options: object
    ) -> None:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **options)
        self.page: Page = context.new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
