"""`cluster=ray`: Ray places the workers, on this machine or on a cluster. Each is a process that joins the study."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lora_core import backend
from lora_core.errors import UserError, first_line
from sweeps import interrupts
from sweeps.config import ClusterConfig, is_shared, study_name
from sweeps.requests import ask_to_stop, forget_requests
from sweeps.space import Job

GRACE = 120.0  # seconds for what workers are writing when the search is interrupted


def run(job: Job) -> int:
    """Runs or resumes the study with the workers that Ray has room for; returns the highest of their exit codes."""
    cluster = job.config.cluster
    if cluster.address is not None and not is_shared(job.config.storage):
        raise UserError(
            f"cluster.address={cluster.address}: the machines of a cluster share a study in PostgreSQL.\n"
            "Give storage=postgresql+psycopg://…, and an output_dir that all of them see."
        )
    name = study_name(job.config, job.config.search.name)
    ray = _ray()
    try:
        ray.init(address=cluster.address, include_dashboard=False, logging_level="error")
    except ConnectionError as error:
        raise UserError(f"cluster.address={cluster.address}: {first_line(error)}") from None
    try:
        with interrupts.handled():  # not before: Ray has just put in handlers of its own
            place = _place(ray, cluster)
            workers = [place.remote([*job.argv, f"study={name}"], os.getcwd()) for _ in range(cluster.workers)]
            return _wait(ray, workers, Path(job.config.output_dir).absolute() / name)
    finally:
        ray.shutdown()


def _ray() -> Any:
    # Otherwise Ray packs the current folder and makes an environment of it wherever a worker runs.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    try:
        import ray
    except ImportError:
        raise UserError("cluster=ray needs a package of its own: uv sync --extra ray.") from None
    return ray


def _place(ray: Any, cluster: ClusterConfig) -> Any:
    gpus = float(backend.has_cuda()) if cluster.gpus is None else cluster.gpus
    return ray.remote(num_cpus=cluster.cpus, num_gpus=gpus, max_retries=-1)(_work).options(name="worker")


def _work(arguments: list[str], folder: str) -> int:
    """In a process of Ray, whose environment names the devices that Ray gives it. What ends it ends the worker."""
    command = [sys.executable, "-m", "sweeps.member", *arguments]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE) as worker:
        return worker.wait()


def _wait(ray: Any, workers: list[Any], folder: Path) -> int:
    try:
        with interrupts.waiting():
            return max(ray.get(workers))
    except KeyboardInterrupt:
        # In their folder, because they may be on other machines; Ray's own way ends no worker that is in a system call.
        if folder.exists():
            ask_to_stop(folder, None)
            ray.wait(workers, num_returns=len(workers), timeout=GRACE)
            forget_requests(folder)
        raise
