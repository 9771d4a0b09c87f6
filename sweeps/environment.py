"""What a run was made with: versions, platform and the state of the working folder's git checkout."""

import platform
import subprocess
from importlib.metadata import version
from typing import Any

PACKAGES = ("lora-sweep", "hydra-core", "optuna", "mlflow")


def environment() -> dict[str, Any]:
    """Versions by package, `python`, `platform`, and `git` (commit, and whether files are changed) if there is one."""
    found: dict[str, Any] = {name: version(name) for name in PACKAGES}
    return {**found, "python": platform.python_version(), "platform": platform.platform(), "git": _git()}


def _git() -> str | None:
    try:
        commit = _output("git", "rev-parse", "--short", "HEAD")
        return f"{commit} with changes" if _output("git", "status", "--porcelain") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
