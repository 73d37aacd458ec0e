"""What ONNX Runtime says is told in our words, and never quoted."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from conftest import MODELS
from isocenter.core.errors import BadManifest, OutOfMemory, RuntimeFault
from isocenter.runtimes.base import SessionOptions
from isocenter.runtimes.onnxruntime import OnnxRuntime, as_fault

WEIGHTS = MODELS / "brain-mri-classifier" / "1" / "model.onnx"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("BFCArena::AllocateRawInternal(...) Failed to allocate memory for requested buffer of size 7"),
        RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : ... Status Message: std::bad_alloc"),
        RuntimeError("Available memory of 16 is smaller than requested bytes of 32"),
        RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size)"),
        RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0"),
        RuntimeError("cudaErrorMemoryAllocation"),
    ],
    ids=["python", "arena", "c++", "arena limit", "cuda", "cublas", "cuda name"],
)
def test_a_run_without_memory_is_out_of_memory(error: Exception) -> None:
    assert isinstance(as_fault(error), OutOfMemory)


def test_another_failure_is_told_by_its_kind_only() -> None:
    fault = as_fault(ValueError("the pixels were 1, 2, 3"))
    assert type(fault) is RuntimeFault
    assert fault.message == "onnxruntime raised ValueError"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"spining": True}, "no option 'spining'"),
        ({"arena": "no"}, "option arena .* must be true or false"),
    ],
)
def test_an_option_that_means_nothing_is_refused(
    options: dict[str, str | int | float | bool], says: str, tmp_path: Path
) -> None:
    with pytest.raises(BadManifest, match=says):
        OnnxRuntime().open(tmp_path / "none.onnx", SessionOptions(options=options))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on address space")
@pytest.mark.parametrize("arena", [True, False])
def test_a_session_that_had_no_memory_goes_on_and_says_nothing_of_it_on_stderr(arena: bool) -> None:
    script = textwrap.dedent(f"""
        import resource
        from pathlib import Path
        import numpy as np
        from isocenter.core.errors import OutOfMemory
        from isocenter.runtimes.base import SessionOptions
        from isocenter.runtimes.onnxruntime import OnnxRuntime

        session = OnnxRuntime().open(Path({str(WEIGHTS)!r}), SessionOptions(options={{"arena": {arena}}}))
        images = np.zeros((256, 3, 224, 224), np.float32)
        session.run({{"image": images[:1]}})
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 64 * 2**20,) * 2)
        try:
            session.run({{"image": images}})
        except OutOfMemory as error:
            print(error.message)
        print(session.run({{"image": images[:1]}})["logits"].shape)
    """)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.splitlines() == ["onnxruntime had no memory for the run", "(1, 4)"]
    assert ended.stderr == ""
