"""What Linux says of memory is read as it is written; what it does not say stays unsaid."""

from pathlib import Path

import pytest

from isocenter.measure.memory import MemoryLeft, ProcessMemory, free_memory, memory_left

V2 = "40 31 0:38 {top} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = "35 31 0:32 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
OTHER = "36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
UNLIMITED_V1 = 9223372036854771712


def write(root: Path, name: str, text: object) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def group(root: Path, folder: str, **figures: object) -> None:
    for name, figure in figures.items():
        write(root, f"sys/fs/cgroup/{folder}/memory.{name}", figure)


def machine(root: Path, *, cgroup: str = "", mounts: str = "") -> None:
    write(root, "proc/meminfo", "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB")
    write(root, "proc/self/cgroup", cgroup)
    write(root, "proc/self/mountinfo", mounts)


def groups_of(root: Path) -> list[tuple[int, int]]:
    """Available and total of every bound but the machine's own."""
    first, *others = memory_left(root)
    assert first == MemoryLeft(400 * 1024, 1000 * 1024)
    return [(left.available_bytes, left.total_bytes) for left in others]


def test_a_process_is_read_in_bytes(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/status", "Name:\tx\nVmHWM:\t    2000 kB\nVmRSS:\t    1500 kB")
    write(tmp_path, "proc/self/clear_refs", "")
    memory = ProcessMemory(tmp_path)
    assert (memory.held_bytes(), memory.peak_bytes(), memory.reset_peak()) == (1500 * 1024, 2000 * 1024, True)
    assert (tmp_path / "proc/self/clear_refs").read_text() == "5"


def test_another_system_says_nothing(tmp_path: Path) -> None:
    memory = ProcessMemory(tmp_path / "nowhere")
    assert (memory.held_bytes(), memory.peak_bytes(), memory.reset_peak()) == (None, None, False)
    assert memory_left(tmp_path / "nowhere") == []


def test_every_group_up_to_the_root_is_a_bound(tmp_path: Path) -> None:
    machine(tmp_path, cgroup="0::/a/b", mounts=OTHER + V2.format(top="/"))
    group(tmp_path, "a/b", max=800, current=500, stat="anon 400\ninactive_file 100\nactive_file 3")
    group(tmp_path, "a", max=600, current=550)
    group(tmp_path, "", current=1)
    assert groups_of(tmp_path) == [(400, 800), (50, 600)]


def test_inside_a_container_the_mount_is_the_group(tmp_path: Path) -> None:
    machine(tmp_path, cgroup="0::/pod/c1", mounts=V2.format(top="/pod/c1"))
    group(tmp_path, "", max=700, current=100, stat="inactive_file 0")
    assert groups_of(tmp_path) == [(600, 700)]


def test_a_path_that_is_not_below_the_mount_is_looked_for_at_its_top(tmp_path: Path) -> None:
    machine(tmp_path, cgroup="0::/other", mounts=V2.format(top="/pod/c1"))
    group(tmp_path, "", max=700, current=100)
    group(tmp_path, "other", max=300, current=100)  # of another's
    assert groups_of(tmp_path) == [(600, 700)]


def test_where_a_group_is_slowed_down_is_as_good_as_its_limit(tmp_path: Path) -> None:
    machine(tmp_path, cgroup="0::/a", mounts=V2.format(top="/"))
    group(tmp_path, "a", max="max", high=300, current=100)
    assert groups_of(tmp_path) == [(200, 300)]


def test_the_first_version_of_groups_is_read_too(tmp_path: Path) -> None:
    machine(tmp_path, cgroup="8:pids:/\n4:memory:/docker/x\n0::/", mounts=V1.format(top="/") + V2.format(top="/"))
    figures = {"limit_in_bytes": 900, "usage_in_bytes": 700, "stat": "inactive_file 1\ntotal_inactive_file 200"}
    group(tmp_path, "memory/docker/x", **figures)
    group(tmp_path, "memory/docker", limit_in_bytes=UNLIMITED_V1, usage_in_bytes=700)
    assert groups_of(tmp_path) == [(400, 900)]


@pytest.mark.parametrize(
    "figures",
    [{"max": "max", "current": 5}, {"max": 100}, {"current": 5}, {"max": "", "current": ""}],
    ids=["no limit", "no usage", "no files of limits", "empty files"],
)
def test_a_group_that_sets_no_bound_is_none(figures: dict[str, object], tmp_path: Path) -> None:
    machine(tmp_path, cgroup="0::/a", mounts=V2.format(top="/"))
    group(tmp_path, "a", **figures)
    assert groups_of(tmp_path) == []


def test_above_its_limit_nothing_is_left(tmp_path: Path) -> None:
    machine(tmp_path, cgroup="0::/a", mounts=V2.format(top="/"))
    group(tmp_path, "a", max=100, current=130)
    assert groups_of(tmp_path) == [(0, 100)]


def test_lines_that_nobody_understands_are_passed_over(tmp_path: Path) -> None:
    machine(tmp_path, cgroup="\nnonsense\n0::/a", mounts="\nnonsense\n1 2 - x\n" + V2.format(top="/"))
    group(tmp_path, "a", max=100, current=30)
    assert groups_of(tmp_path) == [(70, 100)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_this_machine_is_read_without_error() -> None:
    memory = ProcessMemory()
    free_memory()
    held, peak = memory.held_bytes(), memory.peak_bytes()
    assert held is not None
    assert peak is not None
    assert 0 < held <= peak + 2**20  # pages are counted a few late
    assert all(0 <= left.available_bytes <= left.total_bytes for left in memory_left())
