"""Pictures of the live page during a real run: docs/dashboard-coordinator.png, dashboard-silo.png, dashboard-phone.png.

    python benchmarks/dashboard_screenshots.py [--chromium /usr/bin/chromium] [--share 0.6]

Simulates ten silos at epsilon 8, some of which drop out, serves the page about the run and about one of its silos as
`autoflip-secure dashboard` does, and takes pictures when the given share of the rounds is done. About two minutes on
two cores.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

DOCUMENTS = Path(__file__).parents[1] / "docs"
OPTIONS = "--dp-epsilon 8 --dropout 0.05 --rounds 200 --seed 1 --quiet"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
COLOURS = 200
LARGEST = 150_000
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command of this package, ended at the end."""
    process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def address_of(process: subprocess.Popen[str]) -> str:
    """Where a dashboard says that it serves its page."""
    assert process.stdout is not None
    found = re.match(r"(\S+)/  \(", process.stdout.readline())
    if found is None:
        raise SystemExit("the page was not served")
    return found[1]


def rounds_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def rounds_planned(run: Path) -> int:
    return int(re.search(r"^rounds = (\d+)$", (run / "config.toml").read_text(), re.M)[1])  # type: ignore[index]


def save(page: Any, name: str, *, whole: bool = True) -> None:
    """A picture with few colours, which is small; curves and text lose nothing by it."""
    image = Image.open(BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    path = DOCUMENTS / name
    # Rare colours are kept by the method, and frequent ones, the ground first of all, exactly so by kmeans.
    few = image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    print(f"{path.relative_to(DOCUMENTS.parent)}: {image.width} x {image.height}, {path.stat().st_size} bytes")
    if path.stat().st_size > LARGEST:
        raise SystemExit(f"{path} is larger than {LARGEST} bytes")


def take(browser: Any, runs: str, silo: str) -> None:
    """All pictures, as fast as may be: the run goes on."""
    page = browser.new_page(viewport=DESKTOP, color_scheme="light")
    page.goto(silo)
    page.wait_for_selector(".gauge", timeout=120_000)
    page.wait_for_selector("figure:has-text('Epsilon over all runs') path", timeout=120_000)
    page.wait_for_timeout(4000)
    save(page, "dashboard-silo.png")
    page.goto(f"{runs}/#/run/hospitals")
    page.wait_for_selector("figure svg path")
    page.wait_for_timeout(2500)
    save(page, "dashboard-coordinator.png")
    phone = browser.new_page(viewport=PHONE, color_scheme="dark", device_scale_factor=1.5, is_mobile=True)
    phone.goto(f"{runs}/#/run/hospitals")
    phone.wait_for_selector("figure svg path")
    phone.wait_for_timeout(1000)
    save(phone, "dashboard-phone.png", whole=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="browser to use")
    parser.add_argument(
        "--share", type=float, default=0.6, help="of the rounds that are done before pictures are taken"
    )
    options = parser.parse_args()
    DOCUMENTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "runs" / "hospitals"
        run.parent.mkdir()
        with started("autoflip_secure.sim", *OPTIONS.split(), "--run-dir", str(run)) as simulation:
            while not (run / "config.toml").exists() or rounds_done(run) < options.share * rounds_planned(run):
                if simulation.poll() is not None:
                    raise SystemExit("the run ended before a picture was taken")
                time.sleep(0.5)
            silo = run / "silos" / "silo-003"
            command = ("autoflip_secure.cli", "dashboard", "--port", "0")
            with started(*command, str(run.parent)) as runs_page, started(*command, str(silo)) as silo_page:
                addresses = address_of(runs_page), address_of(silo_page)
                with sync_playwright() as playwright:
                    browser = playwright.chromium.launch(executable_path=options.chromium, args=list(FLAGS))
                    take(browser, *addresses)
                    browser.close()
            print(json.dumps({"rounds done": rounds_done(run)}))


if __name__ == "__main__":
    main()
