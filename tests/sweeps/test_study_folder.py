"""What a study's record keeps of how it was made."""

from pathlib import Path

from lora_core.records import DataInfo, ModelInfo, StudyRecord, load_study, save_study
from reports.reproduce import RESUMED
from sweeps.protocol import Ready
from sweeps.space import make_job
from sweeps.study_folder import other_versions, study_record


def opened(folder: Path, mlx: str) -> StudyRecord:
    """The record as a search with this version of MLX leaves it."""
    model = ModelInfo("tiny", "/tiny", "llama", 4, [], 1000, "float32", "abc")
    ready = Ready(model, DataInfo("rows", "def", {}, {}, [64], 3), 1, True, {"mlx": mlx}, [])
    record = study_record("s", folder, make_job(["model=tiny"]), ready, [], "lora-sweep search study=s")
    save_study(folder, record)
    return load_study(folder)


def test_a_resumed_study_tells_of_other_versions_once(tmp_path: Path) -> None:
    assert opened(tmp_path, "0.32.4").notes == []
    assert opened(tmp_path, "0.32.5").notes == [f"{RESUMED}mlx 0.32.4 → 0.32.5"]
    assert opened(tmp_path, "0.32.5").notes == [f"{RESUMED}mlx 0.32.4 → 0.32.5"]


def test_slots_and_what_was_not_known_are_no_versions() -> None:
    assert other_versions({"slots": 1, "git": None}, {"slots": 4, "git": "abc"}) is None
    assert other_versions({}, {"mlx": "0.32.4"}) is None
