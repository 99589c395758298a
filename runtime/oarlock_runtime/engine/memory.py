"""How much memory this process may still take: the machine's free memory, or less where a cgroup says so."""

from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping: MemAvailable, bounded by the cgroup's limit less what it uses."""
    available = _meminfo(root / "proc/meminfo", "MemAvailable")
    for limit_file, used_file, cache_key in (
        ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "inactive_file"),
        (
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            "sys/fs/cgroup/memory/memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        limit, used = _number(root / limit_file), _number(root / used_file)
        if limit is None or used is None:
            continue
        # File pages that nobody has touched lately count as used but are given back on demand.
        reclaimable = _stat((root / limit_file).with_name("memory.stat"), cache_key)
        available = min(available, max(limit - used + reclaimable, 0))
    return available


def _meminfo(path: Path, key: str) -> int:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise OSError(f"{path}: has no {key}")


def _number(path: Path) -> int | None:
    """The file's number; None where there is no such file or no limit ("max")."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _stat(path: Path, key: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [key]), 0)
