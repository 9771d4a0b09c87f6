"""The platform branches, with the platform faked; and one real process that must end up with a fast BLAS."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from lora_core import backend

fresh_prepare: Callable[[], list[str]] = backend.prepare.__wrapped__
linux_x86 = sys.platform == "linux" and backend._is_installed("mkl")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Linux CPU machine on which mlx is not imported; returns the names of the libraries loaded."""
    names: list[str] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.delenv("MKL_CBWR", raising=False)
    monkeypatch.setattr(backend, "has_cuda", lambda: False)
    monkeypatch.setattr(backend, "_mkl_candidates", lambda: ["libmkl_rt.so.9"])
    monkeypatch.setattr(backend, "_openblas_candidates", lambda: ["libopenblas.so.0"])
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda name, mode: names.append(name))
    return names


def fail_for(library: str) -> Callable[..., None]:
    def load(name: str, mode: int) -> None:
        if library in name:
            raise OSError(f"{name}: cannot open shared object file")

    return load


def test_linux_cpu_loads_mkl_in_its_reproducible_mode(loaded: list[str]) -> None:
    assert "MKL_CBWR=AUTO,STRICT" in fresh_prepare()[0]
    assert loaded == ["libmkl_rt.so.9"]
    assert backend.os.environ["MKL_CBWR"] == "AUTO,STRICT"


def test_a_mode_of_mkl_that_the_user_chose_stays(loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    assert "MKL_CBWR=AVX2" in fresh_prepare()[0]


def test_openblas_stands_in_for_mkl(loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.ctypes, "CDLL", fail_for("mkl"))
    assert "OpenBLAS" in fresh_prepare()[0]


def test_without_any_blas_it_says_how_slow_it_will_be(loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.ctypes, "CDLL", fail_for(""))
    assert "75 times slower" in fresh_prepare()[0]


def test_too_late_after_mlx(loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", mx)
    with pytest.raises(RuntimeError, match="before mlx"):
        fresh_prepare()
    assert loaded == []


@pytest.mark.parametrize("name", backend.CUDA_ENVIRONMENT)
@pytest.mark.parametrize("set_before", [None, "700"])
def test_cuda_gets_what_suits_packs_unless_set(
    set_before: str | None, name: str, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "has_cuda", lambda: True)
    for each in backend.CUDA_ENVIRONMENT:
        monkeypatch.setenv(each, "")  # put back afterwards
        monkeypatch.delenv(each)
    if set_before is not None:
        monkeypatch.setenv(name, set_before)
    assert fresh_prepare() == []
    assert os.environ[name] == (set_before or backend.CUDA_ENVIRONMENT[name])


@pytest.mark.parametrize("platform", ["darwin", "cuda"])
def test_nothing_happens_on_macos_and_cuda(platform: str, loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if platform == "cuda":
        monkeypatch.setattr(backend, "has_cuda", lambda: True)
    else:
        monkeypatch.setattr(sys, "platform", platform)
    assert fresh_prepare() == []
    assert loaded == [] and "MKL_CBWR" not in backend.os.environ


REAL = """
from lora_core import backend
assert backend.prepare() == backend.prepare()
import mlx.core as mx
x = mx.random.normal((1024, 1024))
mx.eval(x @ x)
maps = open("/proc/self/maps").read()
print([name for name in ("libmkl_rt", "libmkl_core") if name in maps])
"""


@pytest.mark.skipif(not linux_x86, reason="only Linux on x86-64 needs MKL")
@pytest.mark.parametrize(
    "code, expected",
    [(REAL, ["libmkl_rt", "libmkl_core"]), (REAL.replace("assert backend", "# assert backend"), [])],
    ids=["prepared", "control"],
)
def test_mlx_multiplies_with_mkl(code: str, expected: list[str]) -> None:
    """libmkl_core comes in only with the first call that reaches MKL, so it proves that the matmul did."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(expected)


@pytest.fixture(params=["cpu", "metal", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device that mlx claims to run on, faked."""
    info: dict[str, dict[str, Any]] = {
        "cpu": {"device_name": "A CPU"},
        "metal": {"device_name": "Apple M9", "max_recommended_working_set_size": 1000, "memory_size": 1500},
        "cuda": {"device_name": "NVIDIA X", "total_memory": 2000, "free_memory": 1900},
    }
    kind = mx.cpu if request.param == "cpu" else mx.gpu
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(kind))
    monkeypatch.setattr(mx.cuda, "is_available", lambda: request.param == "cuda")
    monkeypatch.setattr(mx, "device_info", lambda: info[request.param])
    return request.param


def test_what_follows_from_the_device(device: str) -> None:
    expected = {
        "cpu": ("CPU: A CPU", 8, mx.float32),
        "metal": ("Metal: Apple M9", 8, mx.bfloat16),
        "cuda": ("CUDA: NVIDIA X", 128, mx.bfloat16),
    }
    found = (backend.device_name(), backend.length_multiple(), backend.train_dtype(mx.bfloat16))
    assert found == expected[device]
    assert backend.is_cpu() == (device == "cpu")


def test_memory_limits_come_from_the_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[str, int] = {}
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: limits.update(wired=limit))
    monkeypatch.setattr(mx, "set_cache_limit", lambda limit: limits.update(cache=limit))
    backend.configure(0.5)
    assert limits == {"cpu": {}, "metal": {"wired": 500, "cache": 500}, "cuda": {"cache": 1000}}[device]


def test_compile_is_off_on_cpu_only(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disabled: list[bool] = []
    monkeypatch.setattr(mx, "disable_compile", lambda: disabled.append(True))
    backend.configure(0.5)
    assert disabled == ([True] if device == "cpu" else [])


def test_peak_memory_is_measured() -> None:
    backend.reset_peak_memory()
    before = backend.peak_memory_gb()
    mx.eval(mx.zeros((1000, 1000)))
    assert backend.peak_memory_gb() >= before + 0.004


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[malloc] Unable to allocate 8589934592 bytes."),
        RuntimeError(
            "[metal::malloc] Attempting to allocate 40000000000 bytes which is greater than the maximum allowed "
            "buffer size of 22906503168 bytes."
        ),
        RuntimeError(
            "[METAL] Command buffer execution failed: Insufficient Memory "
            "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
        ),
        RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"),
        RuntimeError("cudaMallocManaged(&data, size) failed: an illegal memory access was encountered"),
        RuntimeError("cudaGraphInstantiate(&handle_, graph, nullptr, nullptr, 0) failed: out of memory"),
        RuntimeError("cublasLtCreate(&storage.handle) failed with code: 3."),
        RuntimeError("graph.build() failed: CUDNN_STATUS_ALLOC_FAILED."),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
)
def test_errors_that_mean_out_of_memory(error: BaseException) -> None:
    assert backend.is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[matmul] Last dimension of first input must match second to last dimension of second input."),
        RuntimeError("[METAL] Command buffer execution failed: Impacting Interactivity (0000000e:…)."),
        RuntimeError("cudaFreeAsync(buf->data, stream) failed: an illegal memory access was encountered"),
        RuntimeError("cublasLtMatmul(handle) failed with code: 7."),
        RuntimeError("[metal::malloc] Resource limit (499000) exceeded."),
        OSError(28, "No space left on device"),
        KeyError("out of memory"),
    ],
)
def test_other_errors(error: BaseException) -> None:
    assert not backend.is_out_of_memory(error)


@pytest.mark.parametrize(
    ("said", "device"),
    [
        ("cudaLaunchHostFunc(stream, signal, this) failed: an illegal memory access was encountered", True),
        ("cublasLtMatmul(handle) failed with code: 7.", True),
        ("graph.execute() failed: CUDNN_STATUS_EXECUTION_FAILED.", True),
        ("[METAL] Command buffer execution failed: Impacting Interactivity (0000000e:…).", True),
        ("[matmul] Last dimension of first input must match second to last dimension of second input.", False),
        ("[load_safetensors] Failed to open file.", False),
    ],
)
def test_errors_of_the_device_are_told_from_those_of_a_request(said: str, device: bool) -> None:
    assert backend.is_device_failure(RuntimeError(said)) == device
    assert not backend.is_device_failure(ValueError(said))
