"""What is made of what was found."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from isocenter.cli.doctor_report import CORE, Facts, Line, State, cgroup_cores, gather, instruction_sets, report

CPUINFO = "processor : 0\nmodel name\t: Fast CPU\nflags\t\t: fpu sse4_2 avx2 avx512f avx512_bf16 amx_bf16\n"
FACTS = Facts(
    python="3.12.1",
    platform="Linux",
    versions=dict.fromkeys([*CORE, "onnxruntime", "uvloop", "httptools"], "1.0"),
    providers=("CPUExecutionProvider",),
    cpuinfo="model name : Plain CPU\nflags : avx2\n",
    usable_cores=4,
    memory_bytes=8 * 2**30,
    cgroup_cores=None,
    cgroup_bytes=None,
    gpus=(),
)


def line(facts: Facts, name: str) -> Line:
    return next(each for each in report(facts).lines if each.name == name)


def without(*names: str) -> Facts:
    return replace(FACTS, versions={name: version for name, version in FACTS.versions.items() if name not in names})


def test_a_whole_installation_is_healthy_and_needs_no_advice() -> None:
    found = report(FACTS)
    assert (found.healthy, found.hints) == (True, ())


@pytest.mark.parametrize("name", [*CORE, "onnxruntime"])
def test_without_a_part_of_the_core_it_is_not_healthy_and_says_what_to_install(name: str) -> None:
    found = report(without(name))
    assert not found.healthy
    assert line(without(name), name) == Line(
        line(FACTS, name).section, name, f'missing - pip install "{name}"', State.MISSING
    )


@pytest.mark.parametrize("name", ["uvloop", "httptools"])
def test_what_only_makes_it_faster_may_be_missing(name: str) -> None:
    assert report(without(name)).healthy
    assert line(without(name), name).state is State.ABSENT


def test_an_extra_that_is_not_here_names_how_to_get_it() -> None:
    assert line(FACTS, "openvino").value == 'missing - pip install "isocenter[openvino]"'
    assert line(FACTS, "openvino").state is State.ABSENT


def test_a_package_under_another_name_counts() -> None:
    facts = without("onnxruntime")
    facts = replace(facts, versions={**facts.versions, "onnxruntime-gpu": "1.2"})
    assert report(facts).healthy
    assert line(facts, "onnxruntime").value == "1.2 (onnxruntime-gpu) (CPU)"


def test_a_runtime_that_cannot_be_imported_is_missing() -> None:
    assert not report(replace(FACTS, providers=None)).healthy


def test_the_cpu_is_named_with_what_makes_models_fast() -> None:
    facts = replace(FACTS, cpuinfo=CPUINFO)
    assert line(facts, "cpu").value == "Fast CPU, 4 usable cores"
    assert line(facts, "instructions").value == "avx2, avx512f, avx512_bf16, amx_bf16"


def test_a_cpu_without_flags_has_none() -> None:
    assert instruction_sets("") == []


def test_bf16_is_never_used_unasked_and_that_is_said() -> None:
    assert any("bf16" in hint for hint in report(replace(FACTS, cpuinfo=CPUINFO)).hints)


def test_a_cgroup_below_the_visible_cores_is_worth_a_hint() -> None:
    assert any("threads" in hint for hint in report(replace(FACTS, cgroup_cores=1.5)).hints)
    assert report(replace(FACTS, cgroup_cores=4.0)).hints == ()


def test_a_gpu_that_the_runtime_cannot_use_is_worth_a_hint() -> None:
    lonely = replace(FACTS, gpus=("Big GPU",))
    used = replace(lonely, providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert any("onnxruntime-gpu" in hint for hint in report(lonely).hints)
    assert report(used).hints == ()
    assert line(used, "gpu 0").value == "Big GPU"


@pytest.mark.parametrize(
    ("text", "cores"), [("200000 100000", 2.0), ("max 100000", None), ("-1 100000", None), ("", None)]
)
def test_a_cgroup_quota_is_cores_worth_of_time(text: str, cores: float | None) -> None:
    assert cgroup_cores(text) == cores


def test_facts_are_read_where_the_system_puts_them(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": CPUINFO,
        "proc/meminfo": "MemTotal:       16384 kB\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/memory.max": "1048576\n",
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t Some GPU\nIRQ: 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    facts = gather(tmp_path, version_of=lambda name: "9" if name == "numpy" else None, usable_cores=2)
    assert facts.versions == {"numpy": "9"}
    assert (facts.memory_bytes, facts.cgroup_cores, facts.cgroup_bytes) == (2**24, 1.5, 2**20)
    assert facts.gpus == ("Some GPU",)


def test_a_system_that_says_nothing_gives_unknowns_and_no_error(tmp_path: Path) -> None:
    facts = gather(tmp_path, version_of=lambda _: None, usable_cores=1)
    assert (facts.memory_bytes, facts.cgroup_cores, facts.cgroup_bytes) == (None, None, None)
    assert not report(facts).healthy


def test_what_an_uninstalled_runtime_has_left_behind_is_no_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))

    facts = gather(tmp_path, version_of=lambda _: "9", usable_cores=1)

    assert facts.providers is None
    assert not report(facts).healthy


def test_a_driver_may_speak_another_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_bytes("#!/bin/sh\necho 'GPU 0: Gerät (UUID: GPU-1)'\n".encode("latin-1"))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    assert gather(tmp_path, version_of=lambda _: None, usable_cores=1).gpus == ("Ger\ufffdt",)
