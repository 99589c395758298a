"""What is shown: the picture on a terminal, lines in a pipe."""

from datetime import UTC, datetime

import pytest
from rich.console import Console

from oarlock_operator.api.status import Condition, DownloadProgress, Group, Member, ModelDeploymentStatus
from oarlock_operator.local.screen import Screen, View, picture


def status(reason: str, state: str = "Loading") -> ModelDeploymentStatus:
    ready = Condition(
        type="Ready",
        status="True" if reason == "Serving" else "False",
        reason=reason,
        message="said why",
        last_transition_time=datetime.now(UTC),
    )
    member = Member.model_validate({"rank": 0, "pod": "llm-0-e1-0", "state": state, "ip": "127.1.0.2"})
    group = Group(index=0, epoch=1, revision="r", state="Loading", members=(member,))
    return ModelDeploymentStatus(conditions=(ready,), groups=(group,))


def drawn(view: View) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(picture(view))
    return capture.get()


FETCHED = DownloadProgress(bytes=50, total=100, summary="50% of 100 B")


def test_the_picture_has_members_bars_and_the_address() -> None:
    assert "127.1.0.2" in drawn(View("llm", "http://x/v1", status("Serving", "Ready")))
    assert "http://x/v1" in drawn(View("llm", "http://x/v1", status("Serving", "Ready")))
    assert "50% of 100 B" in drawn(View("llm", "", status("Downloading", "Downloading"), FETCHED))
    loading = drawn(View("llm", "", status("Loading"), doing={"llm-0-e1-0": "loading weights 60%"}))
    assert "loading weights" in loading and "60%" in loading and "http" not in loading
    assert "60%" not in drawn(View("llm", "", status("Loading"), doing={"llm-0-e1-0": "took 60% of it"}))


def test_a_pipe_gets_a_line_for_each_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen() as screen:
        for done in (50, 60):
            fetched = FETCHED.model_copy(update={"summary": f"{done}% of 100 B"})
            screen.show(View("llm", "", status("Downloading"), fetched))
        screen.show(View("llm", "", status("Loading"), doing={"llm-0-e1-0": "loading weights 60%"}))
        screen.show(View("llm", "", status("Serving")))
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said] == ["Downloading:", "Loading:", "Serving:"]
    assert "50% of" in said[0] and "60%" in said[1]
