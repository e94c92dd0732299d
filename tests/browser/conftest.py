"""A headless Chromium, and a page that fails the test when anything in it goes wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Browser:
    """Opens pages, and remembers what they complained about and whom they asked."""

    chromium: Any
    problems: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def open(self, address: str, width: int = 1360, height: int = 820) -> Any:
        page = await self.chromium.new_page(viewport={"width": width, "height": height})
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._heard)
        page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self.asked.append(request.url))
        await page.goto(address)
        return page

    def _heard(self, message: Any) -> None:
        # A session that has no message yet, and a gateway that is away, are part of the story.
        expected = ("404", "503", "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING")
        if message.type == "error" and not any(text in message.text for text in expected):
            self.problems.append(message.text)


@pytest.fixture
def _chromium() -> None:
    if not CHROMIUM.exists():
        pytest.skip(f"Chromium is not installed at {CHROMIUM}")


@pytest.fixture
async def browser(_chromium: None) -> AsyncIterator[Browser]:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        found = Browser(chromium)
        try:
            yield found
        finally:
            await chromium.close()
    assert found.problems == []
