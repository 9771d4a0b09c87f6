"""Imports only run downwards: sweeps → lora_core, sweeps → reports, reports → lora_core."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {"lora_core": set(), "reports": {"lora_core"}, "sweeps": {"lora_core", "reports"}}
FOREIGN = {
    "lora_core": {"hydra", "omegaconf", "optuna", "mlflow", "pandas"},
    "reports": {"mlx"},
    "sweeps": set(),
}
FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imported(source: str) -> Iterator[str]:
    """The top-level packages that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_run_downwards(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    found = set(imported(path.read_text()))
    upwards = (found & ALLOWED.keys()) - ALLOWED[package] - {package}
    assert not upwards, f"{package} must not import {upwards}"
    assert not found & FOREIGN[package]


def test_the_check_sees_imports_inside_functions() -> None:
    assert set(imported("def f():\n    from sweeps.cli import main\n    import optuna.trial")) == {
        "sweeps",
        "optuna",
    }


def test_the_parent_process_does_without_mlx() -> None:
    """Its crash, or a device that is lost, must not take the study down."""
    commands = ", ".join(f"sweeps.{name}" for name in ("answering", "export", "plan", "search", "train"))
    program = f"import sys, {commands}; print([m for m in sys.modules if m[:3] == 'mlx'])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
