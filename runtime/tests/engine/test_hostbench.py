"""The bench of host work runs and says what it measured; how fast is for the bench itself."""

from oarlock_runtime.engine import hostbench


def test_it_shows_each_count_with_its_budget() -> None:
    lines: list[str] = []
    costs = hostbench.run((1, 5), steps=3, show=lines.append)
    assert [cost.sequences for cost in costs] == [1, 5] and len(lines) == 3
    assert [cost.budget for cost in costs] == [150.5, 152.5]
    assert all(cost.median > 0 for cost in costs)
