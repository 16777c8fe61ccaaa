"""A page as a real browser shows it, where Chromium and its driver are installed."""

import contextlib
import shutil
import time

import pytest

# --no-sandbox: as root, as in a container, Chromium does not start otherwise. It looks for updates of itself
# on a network that may not be there.
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

# Text and pictures of a page, also of those parts that web components keep to themselves.
SHOWN = """
const text = [], pictures = [];
(function walk(node) {
  if (["STYLE", "SCRIPT"].includes(node.tagName)) return;
  if (node.nodeType === Node.TEXT_NODE && node.textContent.trim()) text.push(node.textContent.trim());
  if (node.tagName === "INPUT") text.push(node.value);
  if (node.tagName === "IMG" && node.naturalWidth) pictures.push([node.naturalWidth, node.naturalHeight]);
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
})(document.body);
return [text.join("\\n"), pictures];
"""


@contextlib.contextmanager
def chromium(width=1300, height=1000):
    """A selenium driver of headless Chromium; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--window-size={width},{height}"):
        options.add_argument(flag)
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        window.set_page_load_timeout(120)
        yield window
    finally:
        window.quit()


def shown(window):
    """What the page holds now: its text, a line a piece, and `[width, height]` of each picture."""
    return window.execute_script(SHOWN)


def wait_for(window, *pieces, pictures=(), seconds=90):
    """Waits until the page shows all pieces of text, and pictures at least so large; gives what it shows.

    Args:
        window: a selenium driver.
        *pieces: str, each within one piece of the page's text.
        pictures: list of `(width, height)`.
        seconds: until it fails.

    Returns:
        `(text, sizes)`, as of `shown`.
    """
    end = time.monotonic() + seconds
    while True:
        text, found = shown(window)
        missing = [piece for piece in pieces if piece not in text]
        missing += [size for size in pictures if not any(w >= size[0] and h >= size[1] for w, h in found)]
        if not missing:
            return text, found
        assert time.monotonic() < end, f"no {missing}; pictures {found}; the page shows:\n{text}"
        time.sleep(0.5)
