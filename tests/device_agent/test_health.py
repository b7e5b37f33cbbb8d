"""What the kernel says of memory, and what is made of it."""

import pytest

from device_agent import health

GB = 1000


@pytest.fixture
def machine(tmp_path):
    """A /proc and a /sys/fs/cgroup of a machine with 4 GB available, this process in /a/b."""

    def make(available_kb=3_906_250, **groups):
        proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        (proc / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {available_kb} kB\n")
        (proc / "self" / "cgroup").write_text("0::/a/b\n")
        for name, (limit, taken, cached) in groups.items():
            folder = cgroups / name.replace("_", "/")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "memory.max").write_text(f"{limit}\n")
            (folder / "memory.current").write_text(f"{taken}\n")
            (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
        return health.free_memory_mb(proc, cgroups)

    return make


def test_without_a_limit_it_is_what_the_machine_has(machine):
    assert machine(a_b=("max", 10, 0)) == 4 * GB


def test_a_limit_counts_with_what_is_cached_given_back(machine):
    assert machine(a_b=(10**9, 9 * 10**8, 2 * 10**8)) == 300.0


def test_the_tightest_limit_around_counts(machine):
    assert machine(a=(5 * 10**8, 10**8, 0), a_b=(10**9, 0, 0)) == 400.0


def test_a_group_above_its_limit_has_nothing_left(machine):
    assert machine(a_b=(10**6, 10**9, 0)) == 0.0


def test_where_nothing_is_said_nothing_is_known(tmp_path):
    assert health.free_memory_mb(tmp_path, tmp_path) is None


def test_this_machine_says_something():
    assert health.free_memory_mb() > 0
