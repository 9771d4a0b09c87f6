"""What differs between Apple Metal, NVIDIA CUDA and plain CPU. No other module asks for the platform.

Call `prepare` before anything imports mlx, and `configure` right after.
"""

import ctypes
import ctypes.util
import os
import re
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.errors import UserError

if TYPE_CHECKING:
    import mlx.core as mx

CUDA_WHEELS = ("mlx-cuda-12", "mlx-cuda-13")
CUDA_ENVIRONMENT = {
    # MLX hands work to the device in portions, many ahead, and memory is free only when a portion has been done.
    # Smaller ones than its own (1,000 MB on an H100) halve the peak of a step and cost it some per cent.
    "MLX_MAX_MB_PER_BUFFER": "128",
    # It keeps the graphs of so many portions. A step of a deep pack has more than its own 400, and makes all anew.
    "MLX_CUDA_GRAPH_CACHE_SIZE": "4000",
}
FUSED_ATTENTION_MULTIPLE = 128  # CUDA: the backward pass of fused attention takes no other lengths
LENGTH_MULTIPLE = 8
_RATHER_SLOTS = "Two workers on one would only share its time: trainer.slots trains several trials at a time."
# How MLX and what it calls word it: its allocators, Metal's command buffers, the CUDA runtime, cuBLAS (3 is its code
# for a failed allocation), cuDNN, and C++. A failed cudaMalloc may give any reason: it is the first call to notice.
_OUT_OF_MEMORY = re.compile(
    r"unable to allocate|maximum allowed buffer size|insufficient memory|out ?of ?memory|cudaMalloc\w*\b.* failed"
    r"|cublas.* failed with code: 3\.|_ALLOC_FAILED|bad_alloc",
    re.IGNORECASE | re.DOTALL,
)
# And that the device, or its driver, failed for another reason.
_DEVICE_FAILURE = re.compile(r"^\[METAL\] Command buffer execution failed|^(cuda|cublas)\w*\(.*\) failed|CUDNN_STATUS_")


@cache
def prepare() -> list[str]:
    """Loads a fast BLAS where MLX has none of its own, which is Linux without CUDA.

    MLX's wheel for Linux brings the reference BLAS. A library that is loaded with global symbols before mlx
    takes its place. A second call does nothing and returns the same lines.

    Returns: what was done, in lines to show; nothing on macOS and CUDA.
    Raises: RuntimeError if mlx is imported already, because it is too late then.
    """
    if sys.platform != "linux":
        return []
    if has_cuda():
        for name, value in CUDA_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        return []
    if "mlx.core" in sys.modules:
        raise RuntimeError("backend.prepare() must be called before mlx is imported.")
    # Without it MKL picks kernels by the number of rows, and a trial's result depends on its neighbours.
    mode = os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    if _load_first(_mkl_candidates()):
        return [f"CPU: MLX multiplies matrices with MKL (MKL_CBWR={mode})."]
    if _load_first(_openblas_candidates()):
        return ["CPU: MLX multiplies matrices with OpenBLAS; packed and single trials may differ slightly."]
    return ["CPU: found neither MKL nor OpenBLAS, so training is about 75 times slower: pip install mkl."]


def shares(workers: int) -> list[dict[str, str]]:
    """For each of several processes that train on this machine, the part of the environment that leaves it a device, or
    cores, of its own. Raises UserError where there is none for each: sharing one saves nothing, `trainer.slots` does.
    """
    if workers == 1:
        return [{}]
    if sys.platform == "darwin":
        raise UserError(f"cluster.workers={workers}: a Mac has one GPU. {_RATHER_SLOTS}")
    if has_cuda():
        there = _cuda_devices()
        if len(there) < workers:
            raise UserError(f"cluster.workers={workers}: there are {len(there)} CUDA devices. {_RATHER_SLOTS}")
        return [{"CUDA_VISIBLE_DEVICES": device} for device in there[:workers]]
    cores = len(os.sched_getaffinity(0))
    if cores < workers:
        raise UserError(f"cluster.workers={workers}: there are {cores} CPU cores. Give at most one worker for each.")
    return [threads(cores // workers)] * workers


def threads(count: int) -> dict[str, str]:
    """The part of the environment that has a process multiply with so many threads."""
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}


def _cuda_devices() -> list[str]:
    """What the environment leaves to this process, or all that the driver lists."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [device.strip() for device in given.split(",") if device.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True).stdout
    except OSError:
        return []
    return [str(index) for index, _ in enumerate(listed.splitlines())]


def has_cuda() -> bool:
    """Whether this is an installation for NVIDIA cards."""
    return any(_is_installed(name) for name in CUDA_WHEELS)


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _mkl_candidates() -> list[str]:
    """Paths of libmkl_rt: what the package `mkl` says it installed, then this environment's lib folder."""
    listed = metadata.files("mkl") or [] if _is_installed("mkl") else []
    found = [Path(str(file.locate())) for file in listed if file.name.startswith("libmkl_rt.so")]
    found += sorted((Path(sys.prefix) / "lib").glob("libmkl_rt.so*"))
    return [str(path.resolve()) for path in found if path.exists()]


def _openblas_candidates() -> list[str]:
    name = ctypes.util.find_library("openblas")
    return [name] if name else []


def _load_first(candidates: list[str]) -> bool:
    for candidate in candidates:
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
            return True
        except OSError:  # a part of it is missing: the next one may be whole
            continue
    return False


def configure(memory_fraction: float) -> list[str]:
    """Sets MLX up for this device, after import.

    On a GPU it keeps buffers within `memory_fraction` (0 to 1) of what the device recommends or has. On CPU
    it turns `mx.compile` off if that cannot work here. Returns lines to show.
    """
    import mlx.core as mx

    if is_cpu():
        mx.disable_compile()
        return []
    total = memory()
    if not total:
        return []
    budget = int(memory_fraction * total)
    if "max_recommended_working_set_size" in mx.device_info():  # Metal
        mx.set_wired_limit(budget)
    mx.set_cache_limit(budget)
    return [f"{device_name()}: keeps at most {budget / 1e9:.1f} GB of memory for reuse."]


def memory() -> int:
    """Bytes that the device recommends to use, or has; 0 where it does not say."""
    import mlx.core as mx

    if is_cpu():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    info = mx.device_info()
    names = ("max_recommended_working_set_size", "total_memory", "memory_size")
    return int(next((info[name] for name in names if info.get(name)), 0))


def is_cpu() -> bool:
    import mlx.core as mx

    return mx.default_device() == mx.Device(mx.cpu)


def is_cuda() -> bool:
    import mlx.core as mx

    return not is_cpu() and mx.cuda.is_available()


def device_name() -> str:
    """For example `CPU: AMD EPYC`, `Metal: Apple M3 Max`, `CUDA: NVIDIA H100`."""
    import mlx.core as mx

    kind = "CPU" if is_cpu() else "CUDA" if is_cuda() else "Metal"
    return f"{kind}: {mx.device_info().get('device_name', 'unknown')}"


def length_multiple() -> int:
    """Padded lengths must be a multiple of this many tokens."""
    return FUSED_ATTENTION_MULTIPLE if is_cuda() else LENGTH_MULTIPLE


def prefix_tokens() -> int:
    """Tokens, of several batches, that go through frozen blocks at a time. A GPU gains by many. A CPU does not, and
    keeps a batch's bits for itself: they may depend on the shape of a product."""
    return 1 if is_cpu() else 8192


def evaluated_tokens() -> int:
    """Tokens of a batch, and of each trial beside others, that are evaluated at a time. A GPU takes about as long for
    this many as for fewer; on a CPU see `prefix_tokens`."""
    return 1 if is_cpu() else 2048


def train_dtype(weights: "mx.Dtype") -> "mx.Dtype":
    """The dtype to train a base of dtype `weights` in. On CPU only float32 goes through BLAS; half precision
    is about 75 times slower there."""
    import mlx.core as mx

    return mx.float32 if is_cpu() else weights


def peak_memory_gb() -> float:
    """The most that MLX's arrays took since the start or `reset_peak_memory`, in 10^9 bytes."""
    import mlx.core as mx

    return mx.get_peak_memory() / 1e9


def reset_peak_memory() -> None:
    import mlx.core as mx

    mx.reset_peak_memory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that the device, or the machine, has no memory left. Where MLX has no time for an
    error, which is always so on a CPU, the process dies instead."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | ValueError) and _OUT_OF_MEMORY.search(str(error)) is not None


def is_device_failure(error: BaseException) -> bool:
    """Whether the device, or its driver, failed at what was asked of it. That may go well another time, though not in
    this process."""
    return isinstance(error, RuntimeError) and _DEVICE_FAILURE.search(str(error)) is not None
