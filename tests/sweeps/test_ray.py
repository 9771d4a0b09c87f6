"""Workers that Ray places: on a Ray of this machine, the same study as without."""

import signal
import sys
from pathlib import Path

import pytest

from lora_core.errors import UserError
from sweeps import ray_cluster
from sweeps.cli import main
from sweeps.space import make_job
from tests.sweeps.test_members import MORE_THAN_ONE_CORE, Place, arguments, processes, reach_two


@MORE_THAN_ONE_CORE
@pytest.mark.ray
def test_two_workers_of_ray_give_what_one_process_gives(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, two = Place(tmp_path_factory.mktemp("one")), Place(tmp_path)
    assert main(arguments(one)) == 0
    assert main(arguments(two, "cluster=ray", "cluster.workers=2")) == 0
    assert len(processes(two)) == 2
    assert two.results() == one.results()
    assert two.record().state == "complete"


@MORE_THAN_ONE_CORE
@pytest.mark.ray
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_ends_in_words_and_goes_on(tmp_path: Path, number: int, code: int) -> None:
    place = Place(tmp_path)
    search = arguments(place, "cluster=ray", "cluster.workers=2")
    parent = place.start(*search)
    reach_two(place, parent)
    parent.send_signal(number)
    _, said = parent.communicate(timeout=120)
    ours = [line for line in said.splitlines() if "(worker pid=" not in line]
    assert (parent.returncode, ours) == (code, ["lora-sweep: interrupted"]), said
    assert place.record().state == "interrupted"
    assert main(search) == 0
    assert [trial.state for trial in place.trials()] == ["complete"] * 6
    assert place.record().state == "complete"


@MORE_THAN_ONE_CORE
@pytest.mark.ray
def test_it_is_seen_to_be_at_work_and_can_be_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place(tmp_path)
    parent = place.start(*arguments(place, "cluster=ray", "cluster.workers=2", "trainer.iters=2000"))
    reach_two(place, parent)
    where = ["--output-dir", str(place.root / "outputs")]
    assert main(["status", "s", *where]) == 0
    assert capsys.readouterr().out.startswith("s  running")
    assert main(["stop", "s", "trial-0000", *where]) == 0
    assert "trial-0000 has ended at step" in capsys.readouterr().out
    assert main(["stop", "s", *where]) == 0
    parent.communicate(timeout=120)
    assert parent.returncode == 130
    assert place.record().state == "interrupted"


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="uv sync --extra ray"):
        ray_cluster.run(make_job(["cluster=ray"]))


def test_a_cluster_needs_a_database_that_its_machines_share() -> None:
    with pytest.raises(UserError, match="share a study in PostgreSQL"):
        ray_cluster.run(make_job(["cluster=ray", "cluster.address=head:6379"]))
