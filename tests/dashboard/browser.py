"""A headless Chromium, as Debian has it, driven by Playwright; tests that need it are skipped where there is none."""

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def require() -> None:
    """Skip what needs a browser where there is none; fail where all is demanded."""
    if CHROMIUM is None:
        if os.environ.get("REQUIRE_ALL") == "1":
            pytest.fail("chromium is missing, and REQUIRE_ALL=1 demands it: apt-get install chromium")
        pytest.skip("chromium is missing; apt-get install chromium")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start one with an empty profile; it ends with the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()
