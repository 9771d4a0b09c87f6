"""The pages of the MLflow UI that the printed links lead to, in a browser."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect

from lora_core.records import TrialRecord
from tests.browser import chromium, open_page
from tests.sweeps.helpers import Place, quick
from tests.sweeps.test_ui import port

pytestmark = pytest.mark.slow
__all__ = ["port"]
WAIT = 60_000  # ms; the first page loads megabytes of scripts


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("searched"))
    assert quick(place, "n_trials=4", "search.confirm.k=1", "search.confirm.repeats=1") == 0
    return place


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@contextmanager
def served(place: Place, port: int) -> Iterator[str]:
    """The address that `lora-sweep ui` prints, while it serves."""
    uri = f"sqlite:///{place.root}/mlflow.db"
    program = place.start("ui", "--uri", uri, "--port", str(port), "--no-browser")
    try:
        assert program.stdout is not None
        program.stdout.readline()
        yield program.stdout.readline().strip()
    finally:
        program.terminate()
        program.wait(timeout=30)


def test_the_link_shows_the_trials_and_their_curves(searched: Place, browser: Browser, port: int) -> None:
    with served(searched, port) as link:
        page = open_page(browser, link, (1600, 1200)).page
        for trial in searched.trials():
            expect(page.get_by_text(trial.name).first).to_be_visible(timeout=WAIT)
        names = page.get_by_role("link", name="trial-").all_inner_texts()
        assert [name.split()[0] for name in names] == [trial.name for trial in ranked(searched)]
        expect(page.get_by_text("confirm-")).to_have_count(0)
        expect(page.get_by_placeholder("Search metric charts")).to_have_value("loss")
        expect(page.get_by_text("adapter_mb")).to_have_count(0)
        lines = page.locator(".scatterlayer .trace")
        lines.nth(len(names) - 1).wait_for(state="attached", timeout=WAIT)
        page.close()


def test_the_table_has_losses_and_searched_settings(searched: Place, browser: Browser, port: int) -> None:
    with served(searched, port) as link:
        page = open_page(browser, link.replace("=CHART", "=TABLE"), (1900, 1200)).page
        expect(page.get_by_role("link", name="trial-").first).to_be_visible(timeout=WAIT)
        for column in ("best_val_loss", "train_loss", "lora_parameters.rank", "optimizer.learning_rate"):
            expect(page.get_by_role("columnheader", name=column).first).to_be_visible()
        expect(page.get_by_role("columnheader", name="adapter_mb")).to_have_count(0)
        page.close()


def test_a_trials_page_says_its_place(searched: Place, browser: Browser, port: int) -> None:
    best = ranked(searched)[0]
    with served(searched, port) as link:
        page = open_page(browser, link, (1600, 1200)).page
        page.get_by_role("link", name=best.name).first.click(timeout=WAIT)
        expect(page.get_by_text("Place 1 of")).to_be_visible(timeout=WAIT)
        page.close()


def ranked(place: Place) -> list[TrialRecord]:
    return sorted(place.trials(), key=lambda trial: trial.value or 0.0)
