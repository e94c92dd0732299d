"""A headless Chromium, and a page that fails the test when anything in it goes wrong."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
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

    context: Any
    problems: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def open(self, address: str, width: int = 1360, height: int = 820) -> Any:
        page = await self.context.new_page()
        await page.set_viewport_size({"width": width, "height": height})
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._heard)
        page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self.asked.append(request.url))
        await page.goto(address)
        return page

    def _heard(self, message: Any) -> None:
        # A session that has no message yet, and a gateway that is away, are part of the story.
        expected = ("404", "503", "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING")
        # Chromium breaks off what it asks for when containers come and go on the machine.
        expected += ("ERR_NETWORK_CHANGED",)
        if message.type == "error" and not any(text in message.text for text in expected):
            self.problems.append(message.text)


@pytest.fixture(scope="package")
def _chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Chromium for all, which takes most of a second to start; the address of its debugger."""
    if not CHROMIUM.exists():
        pytest.skip(f"Chromium is not installed at {CHROMIUM}")
    profile = tmp_path_factory.mktemp("chromium")
    with subprocess.Popen(
        [
            str(CHROMIUM),
            "--headless=new",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            *ARGUMENTS,
            "about:blank",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"DevTools listening on (ws://\S+)", line):
                break
        else:
            raise AssertionError(f"no Chromium: {said}")
        # What it goes on to say must not fill the pipe.
        rest = threading.Thread(target=process.stderr.read, daemon=True)
        rest.start()
        try:
            yield found[1]
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            rest.join(10)


@pytest.fixture
async def browser(_chromium: str) -> AsyncIterator[Browser]:
    """A profile of its own in the one Chromium."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        chromium = await playwright.chromium.connect_over_cdp(_chromium)
        context = await chromium.new_context()
        found = Browser(context)
        try:
            yield found
        finally:
            await context.close()
            await chromium.close()
    assert found.problems == []
