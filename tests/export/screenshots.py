"""An image of a page of `atnet web`, light, dark and on a phone, for docs/web.md: web_images.py PAGE PHOTO PNG."""

import io
import re
import sys
from pathlib import Path

from browser import chromium, find_chromium, served
from PIL import Image
from playwright.sync_api import expect

HEIGHT, BETWEEN = 800, 16
SCREENS = (
    {"viewport": {"width": 480, "height": HEIGHT}},
    {"viewport": {"width": 480, "height": HEIGHT}, "color_scheme": "dark"},
    {"viewport": {"width": 360, "height": HEIGHT}, "has_touch": True, "is_mobile": True},
)


def main(folder: Path, photo: Path, out: Path) -> None:
    path = find_chromium()
    if path is None:
        sys.exit("no Chromium: apt-get install chromium")
    shots = []
    with chromium(path) as browser, served(folder) as address:
        for screen in SCREENS:
            page = browser.new_context(**screen).new_page()
            page.goto(address)
            expect(page.locator("#status")).to_have_text("Ready.")
            page.set_input_files("#choose", photo)
            expect(page.locator("#status")).to_have_text(re.compile("Answered in"))
            page.get_by_label("Show where it looked").set_checked(screen is SCREENS[0])
            shots.append(Image.open(io.BytesIO(page.screenshot())))
    sheet = Image.new("RGB", (sum(shot.width + BETWEEN for shot in shots) - BETWEEN, HEIGHT), "#888888")
    left = 0
    for shot in shots:
        sheet.paste(shot, (left, 0))
        left += shot.width + BETWEEN
    sheet.quantize(128).save(out, optimize=True)
    print(f"Written: {out}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
