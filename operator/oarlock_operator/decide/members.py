"""What one pod is doing, in the words of the status, and what is wrong with it."""

from oarlock_operator.api import names
from oarlock_operator.api.status import Member, MemberState
from oarlock_operator.decide.snapshot import Container, Pod

_IMAGE_TROUBLE = {
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
    "RegistryUnavailable",
}  # fmt: skip
_CONFIG_TROUBLE = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


def member(pod: Pod) -> Member:
    """The status of one member."""
    state, message = _state(pod)
    return Member(
        rank=pod.rank,
        pod=pod.name,
        state=state,
        node=pod.node or None,
        ip=pod.ip or None,
        restarts=pod.server.restarts,
        message=message[:1024] or None,
    )


def _state(pod: Pod) -> tuple[MemberState, str]:
    if pod.deleting:
        return "Terminating", ""
    if pod.ended:
        return "Failed", pod.reason or pod.server.exit_message
    if not pod.node:
        return "Pending", pod.unschedulable
    for container in (*pod.init, pod.server):
        if container.waiting_reason in _IMAGE_TROUBLE | _CONFIG_TROUBLE:
            return "Pulling", f"{container.waiting_reason}: {container.waiting_message}".rstrip(": ")
    for container in pod.init:
        if container.done:
            continue
        if container.name == names.ROSTER_CONTAINER:
            return ("WaitingForPeers", "") if container.running else ("Pulling", "")
        if container.running:
            return "Downloading", ""
        if container.exit_code not in (None, 0):
            return "DownloadFailed", download_trouble(container)
        return "Pulling", ""
    if pod.ready:
        return "Ready", ""
    if pod.server.restarts or pod.server.exit_code is not None:
        return "Failed", server_trouble(pod.server)
    if pod.server.ready:
        return "NotReady", ""
    return "Loading", ""


def download_trouble(container: Container) -> str:
    """What the last attempt of a download said that failed."""
    return container.exit_message or f"the download ended with exit code {container.exit_code}"


def server_trouble(server: Container) -> str:
    """How the server container ended."""
    said = f": {server.exit_message}" if server.exit_message else ""
    return f"the server ended with exit code {server.exit_code}{said}"


def start_trouble(found: Member) -> str:
    """The reason when the image can't be had, or the container can't be made from it; "" otherwise."""
    if found.state != "Pulling" or found.message is None:
        return ""
    return "ContainerCreationFailed" if found.message.partition(":")[0] in _CONFIG_TROUBLE else "ImagePullFailed"
