"""The report as a reader has it: in a browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

import reports
from lora_core.records import load_trial, save_trial
from reports.palette import DARK, LIGHT
from reports.writer import compare
from tests.browser import DESKTOP, PHONE, chromium, open_page
from tests.reports.helpers import RATE, RATIO, write_repeat, write_study
from tests.reports.test_adapter import ONE, write_adapter


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    return reports.build(write_study(tmp_path_factory.mktemp("outputs"))).as_uri()


@pytest.fixture
def page(browser: Browser, report: str) -> Iterator[Page]:
    seen = open_page(browser, report)
    yield seen.page
    seen.page.close()


def rows(page: Page, body: str = "trials") -> list[str]:
    return page.locator(f".sortable tbody.{body} tr:visible .name").all_inner_texts()


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_whole_and_asks_for_nothing(browser: Browser, report: str, scheme: str, size: tuple[int, int]) -> None:
    seen = open_page(browser, report, size, color_scheme=scheme)
    assert seen.errors == [] and seen.requests == [report]
    width = seen.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1], "nothing but tables may be wider than the window"
    page_colour = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = (int((DARK if scheme == "dark" else LIGHT)["page"][i : i + 2], 16) for i in (1, 3, 5))
    assert page_colour == f"rgb({red}, {green}, {blue})"
    seen.page.close()


def test_a_comparison_is_whole_and_asks_for_nothing(browser: Browser, tmp_path: Path) -> None:
    studies = [write_study(tmp_path, name) for name in ("one", "two")]
    for study in studies:
        write_adapter(study / "trial-0003" / "adapters", {(2, "q"): (ONE, [[1.0]]), (3, "q"): (ONE, [[2.0]])})
    address = compare(studies, tmp_path / "out").as_uri()
    seen = open_page(browser, address, PHONE)
    assert seen.errors == [] and seen.requests == [address]
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    names = ("best-0", "best-1", "importance-0", "rates-0", "slices-0", "slices-1", "slices-2", "curves-0")
    names += ("parallel-0", *(f"{name}-{place}" for name in ("heatmap", "rate_map", "adapter") for place in (0, 1)))
    assert set(marks(seen.page)) == {f"plot-{name}" for name in names}
    assert all(marks(seen.page).values())
    seen.page.close()


def marks(page: Page) -> dict[str, int]:
    """Figure → how many marks are drawn in it."""
    return page.evaluate("""() => Object.fromEntries([...document.querySelectorAll(".plot")].map((plot) =>
        [plot.id, plot.querySelectorAll(".scatterlayer path, .barlayer path, .heatmaplayer image").length]))""")


def test_what_goes_wrong_in_a_page_is_seen(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text("<script>throw new Error('x')</script><img src='http://127.0.0.1:9/y'>")
    seen = open_page(browser, (tmp_path / "bad.html").as_uri())
    assert len(seen.requests) == 2 and any("x" in error for error in seen.errors)
    seen.page.close()


def test_every_figure_has_marks(page: Page) -> None:
    drawn = marks(page)
    assert len(drawn) == 10 and all(drawn.values()), drawn


def test_figures_fit_a_printed_page(page: Page) -> None:
    widths = "[...document.querySelectorAll('.plot')].map((plot) => plot.querySelector('svg').clientWidth)"
    assert max(page.evaluate(widths)) > 1000
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert max(page.evaluate(widths)) <= 688 and page.evaluate(f"{widths}.filter((width) => width < 345).length") == 3
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_timeout(500)  # figures follow the window with a delay
    assert max(page.evaluate(widths)) > 1000


def test_columns_sort_both_ways_under_the_pinned_rows(page: Page) -> None:
    pinned, ranked = rows(page, "pinned"), rows(page)
    head = page.locator(".sortable th", has_text="scale_ratio")
    ratios = "[...document.querySelectorAll('tbody.trials tr')].map((row) => Number(row.cells[5].dataset.value))"
    head.click()
    rising = page.evaluate(ratios)
    head.click()
    falling = page.evaluate(ratios)
    assert rising == sorted(rising) and rising[0] == 0.5 and falling == rising[::-1]
    assert rows(page, "pinned") == pinned == ["base", "default"]
    page.locator(".sortable th").first.click()
    assert rows(page)[:8] == ranked[:8], "those without a rank stay last"


@pytest.fixture
def wide(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """A report with the five axes of the default space, of numbers as long as they come."""
    folder = write_study(tmp_path)
    write_repeat(folder, 3, 1, 1.75)
    for place in (*folder.glob("trial-*"), folder / "confirm-0003-1"):
        record = load_trial(place)
        record.params |= {RATE: 0.00091674, RATIO: 0.57749, "lora_parameters.dropout": 0.05, "num_layers": "all"}
        record.metrics["trainable_params"] = 83_886_080
        save_trial(place, record)
    seen = open_page(browser, reports.build(folder).as_uri())
    yield seen.page
    seen.page.close()


def test_the_leaderboard_fits_a_desktop(wide: Page) -> None:
    width = wide.evaluate(
        "(({scrollWidth, clientWidth}) => [scrollWidth, clientWidth])(document.querySelector('.tall'))"
    )
    assert width[0] <= width[1]


def test_on_a_phone_the_names_stay_while_the_leaderboard_scrolls(wide: Page) -> None:
    wide.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    wide.evaluate("document.querySelector('.tall').scrollLeft = 400")
    places = wide.locator(".sortable .name").evaluate_all("all => all.map(each => each.getBoundingClientRect().left)")
    losses = wide.locator(".sortable th", has_text="best_val_loss").bounding_box()
    assert all(0 <= place < 20 for place in places) and losses is not None and losses["x"] < 0


@pytest.mark.parametrize(
    "typed, left",
    [
        ("pruned", ["trial-0002"]),
        ("rank=32 best_val_loss<1.8", ["trial-0003"]),
        ("complete learning_rate>=6e-4", ["trial-0009", "trial-0007"]),
        ("nothing-like-it", []),
    ],
)
def test_rows_are_filtered(page: Page, typed: str, left: list[str]) -> None:
    page.fill(".filter input", typed)
    assert rows(page) == left and rows(page, "pinned") == ["base", "default"]
    assert page.inner_text("#shown") == f"{len(left)} of 10"
    page.fill(".filter input", "")
    assert len(rows(page)) == 10
