"""What `oarlock-operator local` shows: a live table on a terminal, a line for each event in a pipe."""

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from oarlock_operator.api.status import ModelDeploymentStatus
from oarlock_operator.decide.actions import Event

_COLOURS = {
    "Ready": "green", "Loading": "yellow", "Downloading": "cyan", "WaitingForPeers": "cyan", "Forming": "cyan",
    "Failed": "red", "DownloadFailed": "red", "Waiting": "red", "Terminating": "magenta", "Draining": "magenta",
}  # fmt: skip


class Screen:
    """Use as a context; `show` as often as there is something new."""

    def __init__(self, name: str, url: str) -> None:
        self._name, self._url = name, url
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=8) if self._console.is_terminal else None

    def __enter__(self) -> "Screen":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, event: Event) -> None:
        self.line(f"{event.reason}: {event.message}", "red" if event.type == "Warning" else "dim")

    def line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def show(self, status: ModelDeploymentStatus) -> None:
        if self._live is not None:
            self._live.update(picture(self._name, self._url, status))


def picture(name: str, url: str, status: ModelDeploymentStatus) -> RenderableType:
    """The whole state: what it is up to, a bar while the model is fetched, and a line for each member."""
    ready = next((condition for condition in status.conditions if condition.type == "Ready"), None)
    parts: list[RenderableType] = []
    if ready is not None:
        good = ready.status == "True"
        where = f"  {url}" if good else ""
        style = "bold green" if good else "bold yellow"
        parts.append(Text(f"{name}  {ready.reason}: {ready.message}{where}", style=style))
    if status.download is not None:
        if status.download.total:
            parts.append(ProgressBar(total=status.download.total, completed=status.download.bytes, width=60))
        parts.append(Text(f"fetching the model: {status.download.summary}"))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("group", "epoch", "rank", "state", "address", "restarts", ""):
        table.add_column(column, style="dim" if not column else "")
    for group in status.groups:
        for member in group.members:
            state = Text(member.state, style=_COLOURS.get(member.state, ""))
            row = (str(group.index), str(group.epoch), str(member.rank), state, member.ip or "", str(group.restarts))
            table.add_row(*row, member.message or group.message or "")
        if not group.members:
            state = Text(group.state, style=_COLOURS.get(group.state, ""))
            table.add_row(str(group.index), str(group.epoch), "", state, "", str(group.restarts), group.message or "")
    parts.append(table)
    return Group(*parts)
