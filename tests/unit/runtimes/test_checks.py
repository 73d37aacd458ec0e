"""Options and batches are looked at before anything is done with them."""

import numpy as np
import pytest

from isocenter.core.errors import BadManifest, InputNotAccepted, OutOfMemory, RuntimeFault
from isocenter.core.tensor import Array, TensorSpec
from isocenter.runtimes.base import SessionOptions
from isocenter.runtimes.checks import Option, Value, as_fault, check_batch, check_outputs, chosen

TABLE = {"arena": Option(True), "graph": Option("all", ("all", "off")), "size": Option(4), "share": Option(0.5)}
SPECS = (TensorSpec("x", np.dtype(np.float32), (2, -1)), TensorSpec("age", np.dtype(np.int64), ()))


def batch(**changes: Array) -> dict[str, Array]:
    return {"x": np.zeros((3, 2, 5), np.float32), "age": np.zeros(3, np.int64), **changes}


def test_what_is_not_given_has_its_default() -> None:
    assert chosen("r", SessionOptions(options={"size": 7}), TABLE) == {
        "arena": True,
        "graph": "all",
        "size": 7,
        "share": 0.5,
    }


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("arean", True, r"no option 'arean'; it has \['arena', 'graph', 'share', 'size'\]"),
        ("arena", "no", "must be true or false"),
        ("arena", 1, "must be true or false"),
        ("size", True, "must be a whole number"),
        ("share", 1, "must be a number"),
        ("graph", "full", "one of all, off"),
    ],
)
def test_an_option_that_means_nothing_is_refused(name: str, value: Value, says: str) -> None:
    with pytest.raises(BadManifest, match=says):
        chosen("r", SessionOptions(options={name: value}), TABLE)


def test_a_batch_that_fits_is_counted() -> None:
    assert check_batch(batch(), SPECS) == 3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (batch(x=np.zeros((3, 2, 5))), r"'x' is float64\[3, 2, 5\], the model takes float32\['batch', 2, -1\]"),
        (batch(x=np.zeros((3, 4, 5), np.float32)), r"float32\[3, 4, 5\]"),
        (batch(x=np.zeros((2, 5), np.float32)), r"float32\[2, 5\]"),
        (batch(age=np.zeros(2, np.int64)), r"same number of items in every tensor, 1 or more, not \[2, 3\]"),
        (batch(x=np.zeros((0, 2, 5), np.float32), age=np.zeros(0, np.int64)), r"not \[0\]"),
        (batch(sex=np.zeros(3)), "takes no tensor sex"),
        ({"x": np.zeros((3, 2, 5), np.float32)}, "'age' is missing"),
    ],
    ids=["element type", "axis", "no batch axis", "lengths", "empty", "unknown", "missing"],
)
def test_a_batch_that_does_not_fit_is_refused(wrong: dict[str, Array], says: str) -> None:
    with pytest.raises(InputNotAccepted, match=says):
        check_batch(wrong, SPECS)


@pytest.mark.parametrize(
    "answer",
    [np.zeros((0, 4), np.float32), np.zeros((2, 3), np.float32), np.zeros((2, 4)), np.zeros((), np.float32)],
    ids=["no rows", "shape", "element type", "scalar"],
)
def test_an_answer_that_is_not_what_was_said_is_a_fault(answer: Array) -> None:
    given = (TensorSpec("y", np.dtype(np.float32), (4,)),)
    check_outputs("r", {"y": np.zeros((2, 4), np.float32)}, given, 2)
    with pytest.raises(RuntimeFault, match="r gave 'y' as"):
        check_outputs("r", {"y": answer}, given, 2)


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
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=["python", "arena", "c++", "arena limit", "cuda", "cublas", "cuda name", "torch", "torch cuda"],
)
def test_a_run_without_memory_is_out_of_memory(error: Exception) -> None:
    assert isinstance(as_fault("r", error), OutOfMemory)


def test_another_failure_is_told_by_its_kind_only() -> None:
    fault = as_fault("r", ValueError("the pixels were 1, 2, 3"))
    assert type(fault) is RuntimeFault
    assert fault.message == "r raised ValueError"
