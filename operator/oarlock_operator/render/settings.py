"""What the person who installs the operator decides about the objects it makes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RenderSettings:
    """Choices of an installation, the same for all ModelDeployments."""

    cpu_image: str = "localhost/oarlock/runtime-cpu:latest"
    gpu_image: str = "localhost/oarlock/runtime-cuda:latest"
    allow_host_path: bool = False
    network_policy: bool = False
