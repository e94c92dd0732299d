"""Makes the pictures of the documents from the real thing: `make screenshots`.

A headless Chromium asks in the console for something that is delegated over two levels and to a
coding agent; the suite behind it exports to Phoenix. Then it follows the link to the trace.
What both show is stored in `docs/images/`. Installs Phoenix when `make trace-ui` has not yet.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from trace_ui import HOME, ROOT, CannotShow, exporting, install, phoenix, suite

from conveyor_client.supervision.addresses import free_addresses

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

IMAGES = ROOT / "docs/images"
CHROMIUM = Path("/usr/bin/chromium")
# What keeps it from the network and from a screen.
CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
REQUEST = (
    "[[spawn researcher: [[spawn: count the rooms]] [[spawn: count the beds]]]] "
    "[[acp scripted: say:The failing test passes.]]"
)
RUNS = 5
EXPORTED_SECONDS = 60.0
PAGE_MILLISECONDS = 60_000.0


def configuration(directory: Path, addresses: dict[str, str]) -> str:
    """A suite with two kinds of agents and a coding agent that needs no model."""
    scripted = ROOT / "tests/harnesses/scripted.py"
    return f"""\
[store]
url = "sqlite:///{directory / "data"}"
[gateway]
http = "{addresses["http"]}"
grpc = "{addresses["grpc"]}"
[services]
scheduler = "{addresses["scheduler"]}"
agent = "{addresses["agent"]}"
acp = "{addresses["acp"]}"
[agents.defaults.subagents]
max_spawn_depth = 2
[agents.list.main]
description = "Talks to customers"
allow_agents = ["main", "researcher"]
[agents.list.researcher]
description = "Finds facts"
[acp]
permission_mode = "approve-all"
workspace_roots = ["{directory}"]
allowed_harnesses = ["scripted"]
sandbox = "off"
[acp.harness.scripted]
command = ["{sys.executable}", "{scripted}"]
"""


def _exported(ui: str, trace_id: str) -> None:
    """Wait until the trace no longer grows. Raises `CannotShow`."""
    address = f"{ui}/v1/projects/conveyor/spans?limit=1000&trace_id={trace_id}"
    before, end = -1, time.monotonic() + EXPORTED_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            found = len(json.load(answer)["data"])
            if 0 < found == before:
                print(f"{found} spans in the trace")
                return
            before = found
        # Longer than the services keep spans before they send them.
        time.sleep(6)
    raise CannotShow(f"the trace {trace_id} did not come")


async def _photograph(ui: str, console: str) -> None:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=CHROMIUM_OPTIONS
        )
        trace = await _console(browser, console)
        _exported(ui, trace.rpartition("/")[2])
        await _trace(browser, trace)
        await browser.close()


async def _console(browser: Browser, address: str) -> str:
    """Have the request done from the console. Returns where it says that the trace is."""
    page = await browser.new_page(viewport={"width": 1500, "height": 900})
    page.set_default_timeout(PAGE_MILLISECONDS)
    await page.goto(address)
    await page.locator("#link-text", has_text="ready").wait_for()
    await page.fill("#composer-text", REQUEST)
    await page.keyboard.press("Enter")
    await page.locator(".node.good").nth(RUNS - 1).wait_for()
    link = await page.locator("#flow-trace a").get_attribute("href")
    await page.screenshot(path=IMAGES / "console.png")
    if link is None:
        raise CannotShow("the console links to no trace")
    return link


async def _trace(browser: Browser, address: str) -> None:
    page = await browser.new_page(viewport={"width": 1500, "height": 1700})
    page.set_default_timeout(PAGE_MILLISECONDS)
    await page.goto(address)
    await page.get_by_text("invoke_agent main").first.wait_for()
    await _widen(page)
    await page.screenshot(path=IMAGES / "trace.png")


async def _widen(page: Page) -> None:
    """Give the tree the room that its details have: names are long at depth two."""
    edge = page.get_by_role("separator").last
    box = await edge.bounding_box()
    if box is not None:
        await page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        await page.mouse.down()
        await page.mouse.move(box["x"] + 400, box["y"] + box["height"] / 2, steps=10)
        await page.mouse.up()


def main() -> None:
    """Entry point; see the module docstring."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    names = ("http", "grpc", "scheduler", "agent", "acp", "ui", "otlp")
    addresses = dict(zip(names, free_addresses(len(names)), strict=True))
    port, otlp_port = (int(addresses[name].rpartition(":")[2]) for name in ("ui", "otlp"))
    try:
        install(HOME)
        with tempfile.TemporaryDirectory(prefix="conveyor-pictures-") as name:
            directory = Path(name)
            config = directory / "conveyor.toml"
            config.write_text(configuration(directory, addresses))
            console = f"http://{addresses['http']}"
            with (
                phoenix(HOME, directory / "traces", port=port, otlp_port=otlp_port) as ui,
                suite(exporting(ui, otlp_port), f"{console}/readyz", ["--config", str(config)]),
            ):
                asyncio.run(_photograph(ui, console))
    except CannotShow as err:
        sys.exit(f"error: {err}")


if __name__ == "__main__":
    main()
