"""A page in Debian's or anyone's Chromium, as the tests, the proofs and `make web-images` open it."""

import base64
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

expect.set_options(timeout=60_000)  # milliseconds: on a busy machine all takes its time


def find_chromium() -> str | None:
    """The program, None if there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def chromium(path: str) -> Iterator[Browser]:
    """The browser without a window, quiet towards the network."""
    quiet = ["background-networking", "component-update", "sync", "gpu", "quic"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[f"--disable-{name}" for name in quiet])
        yield browser
        browser.close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *said: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the folder's page, served by Python's own web server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


DROP = """([event, name, content]) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))], name));
    const made = event === "drop"
        ? new DragEvent(event, { dataTransfer: data, bubbles: true })
        : new ClipboardEvent(event, { clipboardData: data, bubbles: true });
    document.body.dispatchEvent(made);
}"""


def give(page: Page, name: str, content: bytes, way: str = "choose") -> str:
    """Gives the page a file, and returns what it says of it."""
    if way == "choose":
        page.set_input_files("#choose", {"name": name, "mimeType": "", "buffer": content})
    else:
        page.evaluate(DROP, [way, name, base64.b64encode(content).decode()])
    status = page.locator("#status")
    expect(status).to_have_text(re.compile(rf"^{re.escape(name[:20])}.*[^…]$"))
    return status.inner_text()


def answers(page: Page) -> dict[str, float]:
    """The names shown, likeliest first, with their probabilities."""
    names = page.locator("#answers .name").all_inner_texts()
    shares = page.locator("#answers data").evaluate_all("all => all.map((one) => Number(one.value))")
    return dict(zip(names, shares, strict=True))
