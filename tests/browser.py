"""A page as a real browser sees it, where one is installed."""

import shutil
import subprocess

import pytest


def chromium(*arguments, timeout=120):
    """Runs headless Chromium; skips the test where there is none. Returns what it prints."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    # --no-sandbox: as root, as in a container, Chromium does not start otherwise.
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    done = subprocess.run(
        [found, *fixed, *arguments], capture_output=True, text=True, timeout=timeout, check=True
    )
    return done.stdout


def dom(url, wait=0):
    """The page after its scripts have run for `wait` milliseconds of its own time, as HTML."""
    return chromium("--dump-dom", *([f"--virtual-time-budget={wait}"] if wait else []), url)
