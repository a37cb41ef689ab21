"""Pages as people see them: Debian's Chromium, and what is wrong with what it shows."""

import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ElementHandle, Page

SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

# Spread of the pixels of every <img>, 0 for one that did not load or is all of one colour.
_SPREADS = """() => [...document.querySelectorAll("img")].map(image => {
    if (!image.complete || !image.naturalWidth) return [image.alt, 0];
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
    let [low, high] = [765, 0];
    for (let i = 0; i < data.length; i += 4) {
        const value = data[i] + data[i + 1] + data[i + 2];
        low = Math.min(low, value);
        high = Math.max(high, value);
    }
    return [image.alt, high - low];
})"""


@contextmanager
def launch_browser() -> "Iterator[Browser]":
    """The browser. Without one the test is skipped, or fails where CONTRIQUE_REQUIRE_BROWSER is 1."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        missing = f"none of {', '.join(PROGRAMS)} is installed; apt-get install chromium"
        (pytest.fail if os.environ.get("CONTRIQUE_REQUIRE_BROWSER") == "1" else pytest.skip)(missing)
    with sync_playwright() as playwright:
        # root may not use the sandbox, and containers have a small /dev/shm
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@contextmanager
def open_tab(
    browser: "Browser", address: str, screen: str, colours: str = "light"
) -> "Iterator[tuple[Page, list[str]]]":
    """A page on a screen, and the faults that the browser itself tells: errors, and requests that leave the page.

    Args:
        browser: from `launch_browser`.
        address: of the page; requests to its own origin are no fault unless it is a file.
        screen: a key of SCREENS.
        colours: what the reader prefers.
    """
    width, height = SCREENS[screen]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=colours,  # type: ignore[arg-type]
        is_mobile=screen == "phone",
        has_touch=screen == "phone",
        accept_downloads=True,
    )
    page, faults = context.new_page(), list[str]()
    own = address if address.startswith("file:") else address.split("/", 3)[2]

    def check_origin(url: str) -> None:
        if not url.startswith(("data:", "blob:")) and own not in url:
            faults.append(f"requests {url}")

    page.on("request", lambda request: check_origin(request.url))
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(address)
    yield page, faults
    context.close()


def inspect(path: Path) -> list[str]:
    """What is wrong with a page that loads nothing, on every screen, by day and by night: `list_faults`, with where."""
    faults = []
    with launch_browser() as browser:
        for screen in SCREENS:
            for colours in ("light", "dark"):
                with open_tab(browser, address(path), screen, colours) as (page, errors):
                    faults += [f"{screen}, {colours}: {fault}" for fault in (*list_faults(page), *errors)]
    return faults


def list_faults(page: "Page") -> list[str]:
    """What is wrong with an open page to people: wider than the screen, figures and pictures without content, and what
    keeps it from those who cannot see it or use no mouse.
    """
    faults = violations(page)
    wide, screen = page.evaluate("[document.documentElement.scrollWidth, window.screen.width]")
    if wide > min(screen, page.viewport_size["width"] if page.viewport_size else screen):
        faults.append(f"scrolls sideways: {wide} pixels wide on a screen of {screen}")
    faults += [f"picture '{name}' is blank" for name, spread in page.evaluate(_SPREADS) if spread < 20]
    for figure in page.query_selector_all("svg"):
        if _share(figure) < 0.005:
            faults.append(f"figure '{figure.get_attribute('aria-label')}' is blank")
    return faults


def violations(page: "Page") -> list[str]:
    """What axe-core finds serious or critical in an open page, rule by rule, with the elements."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        f"{rule['id']} ({rule['impact']}): {rule['help']}: " + "; ".join(node["html"][:200] for node in rule["nodes"])
        for rule in Axe().run(page).response["violations"]
        if rule["impact"] in ("serious", "critical")
    ]


def _share(figure: "ElementHandle") -> float:
    """Share of a figure's pixels that differ from its ground."""
    box = figure.bounding_box()
    if not box or min(box["width"], box["height"]) < 50:
        return 0.0
    pixels = _pixels(figure.screenshot())
    return float((np.abs(pixels - pixels[0, 0]).max(axis=2) > 40).mean())


def _pixels(png: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.int64)


def address(path: Path) -> str:
    """A file as an address."""
    return path.resolve().as_uri()


def shoot(page: Path, folder: Path) -> None:
    """The first screens of a page abreast, for the documentation: `report-desktop.png` and `report-phone.png`."""
    with launch_browser() as browser:
        for screen, columns, height, scale in (("desktop", 2, 2080, 0.75), ("phone", 3, 1600, 1)):
            size = {"width": SCREENS[screen][0], "height": columns * height}
            context = browser.new_context(viewport=size, device_scale_factor=scale)
            tab = context.new_page()
            tab.goto(address(page))
            whole = _pixels(tab.screenshot()).astype(np.uint8)
            _small(np.concatenate(np.split(whole, columns), axis=1)).save(
                folder / f"report-{screen}.png", optimize=True
            )
            context.close()


def shoot_service(page: str, pictures: list[Path], folder: Path) -> None:
    """The page of `contrique serve` after pictures were dropped on it, the heat map of the first one shown: by day on
    a desktop, `serve-desktop.png`, and by night on a phone, `serve-phone.png`.
    """
    with launch_browser() as browser:
        for screen, colours, height, scale in (("desktop", "light", 1500, 0.75), ("phone", "dark", 1240, 1)):
            size = {"width": SCREENS[screen][0], "height": height}
            context = browser.new_context(
                viewport=size, device_scale_factor=scale, color_scheme=colours, is_mobile=screen == "phone"
            )
            tab = context.new_page()
            tab.goto(page)
            tab.set_input_files("#files", pictures)
            tab.wait_for_selector("#cards > li:last-child:not([data-state=waiting]):not([data-state=scoring])")
            tab.click("#cards button")
            tab.evaluate("Promise.allSettled([...document.images].map(image => image.decode()))")
            _small(_pixels(tab.screenshot()).astype(np.uint8)).save(folder / f"serve-{screen}.png", optimize=True)
            context.close()


def shoot_rating(page: str, folder: Path) -> None:
    """The page of `contrique rate`, a few questions on: by day on a desktop, `rate-desktop.png`, and by night on a
    phone, `rate-phone.png`.
    """
    with launch_browser() as browser:
        for screen, colours in (("desktop", "light"), ("phone", "dark")):
            width, height = SCREENS[screen]
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=colours, is_mobile=screen == "phone"
            )
            tab = context.new_page()
            tab.goto(page)
            tab.press("#rater", "Enter")
            for _ in range(8):
                tab.wait_for_selector("#answers button:enabled")
                tab.click("#answers button")
            tab.wait_for_selector("#answers button:enabled")
            _small(_pixels(tab.screenshot()).astype(np.uint8)).save(folder / f"rate-{screen}.png", optimize=True)
            context.close()


def _small(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Image.Image:
    """A picture in 256 colours: the commonest as they are, for grounds and ink, and what serves photographs best."""
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    common = colours[np.argsort(-counts)[:48]]
    others = Image.fromarray(colours[None]).quantize(256 - len(common), kmeans=2).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*common.ravel().tolist(), *others[: 3 * (256 - len(common))]])
    return Image.fromarray(pixels).quantize(palette=palette, dither=Image.Dither.NONE)


# python tests/browser.py runs/ID/report.html docs, or http://127.0.0.1:8080/ PICTURE... docs,
# or 'http://127.0.0.1:8080/?rater=anna' docs
if __name__ == "__main__":
    if "?rater=" in sys.argv[1]:
        shoot_rating(sys.argv[1], Path(sys.argv[2]))
    elif sys.argv[1].startswith("http:"):
        shoot_service(sys.argv[1], [Path(name) for name in sys.argv[2:-1]], Path(sys.argv[-1]))
    else:
        shoot(Path(sys.argv[1]), Path(sys.argv[2]))
