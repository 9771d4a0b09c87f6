"""The README's pictures: python -m tests.pictures outputs/STUDY, while `lora-sweep ui` runs."""

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

import reports
from lora_core.records import load_study
from tests.browser import chromium, open_page

PICTURES = Path(reports.__file__).parent / "pictures"
SHOWN = ("answer", "health", "importance", "curves", "adapter", "samples")
# What fits a README: no paths of this machine, and the first figure of a section only.
LEAVE_OUT = "nav, #importance h3, h3 ~ figure, .answer h3, .answer .scroll, .command, .command ~ p, #health .soft"


def picture_report(browser: Browser, study: Path) -> None:
    page = open_page(browser, reports.build(study.absolute()).as_uri(), (1000, 800)).page
    hidden = f"section:not({', '.join(f'#{name}' for name in SHOWN)}), {LEAVE_OUT}"
    page.add_style_tag(content=f"{hidden} {{ display: none }} body {{ padding-bottom: 1rem }}")
    page.screenshot(path=PICTURES / "report.png", full_page=True)
    with Image.open(PICTURES / "report.png") as picture:  # it has few colours: a palette makes it small
        picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3).save(
            PICTURES / "report.png", optimize=True
        )


def picture_runs(browser: Browser, study: Path) -> None:
    page = open_page(browser, load_study(study).tracking["link"], (1400, 900)).page
    page.get_by_role("link", name="trial-").first.wait_for()
    page.get_by_role("button", name="Close", exact=True).click()
    page.locator(".scatterlayer").first.wait_for()
    page.screenshot(path=PICTURES / "mlflow.png")


if __name__ == "__main__":
    with chromium() as started:
        picture_report(started, Path(sys.argv[1]))
        picture_runs(started, Path(sys.argv[1]))
