"""A device is one that is there."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

from isocenter.core.errors import BadManifest
from isocenter.runtimes.devices import CPU, CudaDevice, Device, choose, cpu_has_bf16, cuda_devices

THERE = (CPU, Device("cuda", 0), Device("cuda", 1))


@pytest.mark.parametrize(("asked", "meant"), [("cpu", CPU), ("cuda", Device("cuda", 0)), ("cuda:1", Device("cuda", 1))])
def test_a_device_is_found_by_its_name(asked: str, meant: Device) -> None:
    assert choose("r", asked, THERE) == meant


@pytest.mark.parametrize("asked", ["cuda:2", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:1 ", ""])
def test_one_that_is_not_there_is_refused_by_the_names_of_those_that_are(asked: str) -> None:
    with pytest.raises(BadManifest, match="not there for runtime r; there are cpu, cuda:0, cuda:1"):
        choose("r", asked, THERE)


class FakeDriver:
    """Two GPUs, as the CUDA driver tells of them."""

    NAMES = (b"Old", b"New")
    CAPABILITIES = ((7, 5), (9, 0))

    def __init__(self, *, works: bool = True) -> None:
        self._works = works

    def cuInit(self, _: int) -> int:  # noqa: N802
        return 0 if self._works else 100

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:  # noqa: N802
        handle._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, _: int, handle: ctypes.c_int) -> int:  # noqa: N802
        name.value = self.NAMES[handle.value]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: ctypes.c_int) -> int:  # noqa: N802
        value._obj.value = self.CAPABILITIES[handle.value][{75: 0, 76: 1}[attribute]]
        return 0


@pytest.fixture
def _forgetting() -> Any:
    cuda_devices.cache_clear()
    yield
    cuda_devices.cache_clear()


@pytest.mark.usefixtures("_forgetting")
def test_the_driver_says_which_gpus_there_are_and_what_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: FakeDriver())
    assert cuda_devices() == (CudaDevice("Old", (7, 5)), CudaDevice("New", (9, 0)))
    assert [device.has_tf32 for device in cuda_devices()] == [False, True]


@pytest.mark.usefixtures("_forgetting")
def test_a_driver_without_a_device_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: FakeDriver(works=False))
    assert cuda_devices() == ()


@pytest.mark.usefixtures("_forgetting")
def test_no_driver_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert cuda_devices() == ()


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("flags\t\t: fpu avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Features\t: asimd bf16\n", True),
        ("nothing", False),
    ],
)
def test_bf16_is_there_if_the_processor_says_so(text: str, has: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_has_bf16(tmp_path / "cpuinfo") is has
