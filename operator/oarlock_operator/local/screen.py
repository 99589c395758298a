"""What `oarlock-operator local` shows: a live picture on a terminal, in a pipe a line now and then."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from oarlock_operator.api.status import Condition, DownloadProgress, ModelDeploymentStatus
from oarlock_operator.decide.actions import Event

_COLOURS = {
    "Ready": "green", "Loading": "yellow", "Downloading": "cyan", "WaitingForPeers": "cyan", "Forming": "cyan",
    "Failed": "red", "DownloadFailed": "red", "Waiting": "red", "Terminating": "magenta", "Draining": "magenta",
}  # fmt: skip
_SHARE = re.compile(r"(.+?):? (\d+)%$")  # how the server tells what it is at: `loading weights 60%`
_PIPE_SECONDS = 5.0


@dataclass(frozen=True)
class View:
    """What there is to show at one moment."""

    name: str
    url: str
    status: ModelDeploymentStatus
    download: DownloadProgress | None = None
    doing: Mapping[str, str] = field(default_factory=dict)  # by pod: the last words of members that aren't ready

    @property
    def ready(self) -> Condition | None:
        return next((condition for condition in self.status.conditions if condition.type == "Ready"), None)


class Screen:
    """Use as a context; `show` as often as there may be something new."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=8) if self._console.is_terminal else None
        self._said, self._reason, self._due = "", "", 0.0

    def __enter__(self) -> "Screen":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(Text())
            self._live.stop()

    def event(self, event: Event) -> None:
        self.line(f"{event.reason}: {event.message}", "red" if event.type == "Warning" else "dim")

    def line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def show(self, view: View) -> None:
        if self._live is not None:
            self._live.update(picture(view))
        else:
            self._tell(view)

    def _tell(self, view: View) -> None:
        """In a pipe: each new reason at once, news of the same one every few seconds."""
        if view.ready is None:
            return
        now = time.monotonic()
        text = _headline(view, view.ready)
        if text != self._said and (view.ready.reason != self._reason or now >= self._due):
            self._said, self._reason, self._due = text, view.ready.reason, now + _PIPE_SECONDS
            self.line(text)


def _headline(view: View, ready: Condition) -> str:
    if view.download is not None and ready.reason == "Downloading":
        return f"{view.name}  Downloading: fetching the model, {view.download.summary}"
    said = next(iter(view.doing.values()), "") if ready.reason == "Loading" else ""
    return f"{view.name}  {ready.reason}: {ready.message}" + (f": {said}" if said else "")


def picture(view: View) -> RenderableType:
    """What it is up to, a bar while the model is fetched or loaded, and a line for each member."""
    parts: list[RenderableType] = []
    if view.ready is not None:
        good = view.ready.status == "True"
        text = f"{view.name}  {view.ready.reason}: {view.ready.message}" + (f"  {view.url}" if good else "")
        parts.append(Text(text, style="bold green" if good else "bold yellow"))
    if view.download is not None:
        parts.append(_bar("fetching the model", view.download.bytes, view.download.total, view.download.summary))
    for said in view.doing.values():
        if match := _SHARE.match(said):
            parts.append(_bar(match[1], int(match[2]), 100, f"{match[2]}%"))
    parts.append(_members(view))
    return Group(*parts)


def _bar(what: str, done: int, total: int | None, text: str) -> RenderableType:
    row = Table.grid(padding=(0, 2))
    row.add_row(Text(what), ProgressBar(total=total, completed=done, width=40, pulse=total is None), Text(text))
    return row


def _members(view: View) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("group", "epoch", "rank", "state", "address", "restarts", ""):
        table.add_column(column, style="dim" if not column else "")
    for group in view.status.groups:
        for member in group.members:
            state = Text(member.state, style=_COLOURS.get(member.state, ""))
            row = (str(group.index), str(group.epoch), str(member.rank), state, member.ip or "", str(group.restarts))
            table.add_row(*row, member.message or group.message or "")
        if not group.members:
            state = Text(group.state, style=_COLOURS.get(group.state, ""))
            table.add_row(str(group.index), str(group.epoch), "", state, "", str(group.restarts), group.message or "")
    return table if table.row_count else Text("")
