from pathlib import Path

from oarlock_runtime.engine.memory import available_memory


def machine(root: Path, files: dict[str, str]) -> Path:
    meminfo = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"}
    for name, text in (meminfo | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_a_cgroup_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert available_memory(machine(tmp_path, {})) == 8000 * 1024


def test_a_cgroup_v2_limit_binds(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory.max": "4000000\n",
        "sys/fs/cgroup/memory.current": "1500000\n",
        "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 500000\n",
    }
    assert available_memory(machine(tmp_path, files)) == 3000000


def test_a_cgroup_v2_without_limit_does_not(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "1500000\n"}
    assert available_memory(machine(tmp_path, files)) == 8000 * 1024


def test_a_cgroup_v1_limit_binds(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "6000000\n",
    }
    assert available_memory(machine(tmp_path, files)) == 0
