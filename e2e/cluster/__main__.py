"""`python -m cluster check | build | up [IMAGE.tar …] | down | kubeconfig | kubectl …`, from the folder e2e/."""

import argparse
import os
import sys
from pathlib import Path

from cluster.build import build
from cluster.machine import Cluster, default_folder
from cluster.preflight import lacking
from cluster.processes import ClusterError
from cluster.versions import bin_dir


def main() -> int:
    parser = argparse.ArgumentParser("cluster", description="A two-node Kubernetes on this machine, for tests.")
    parser.add_argument("what", choices=("check", "build", "up", "load", "down", "kubeconfig", "kubectl"))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="images for up and load, arguments for kubectl")
    values = parser.parse_args()
    try:
        if values.what == "check":
            if found := lacking(default_folder()):
                raise ClusterError(f"this machine can't run the cluster, it lacks {'; '.join(found)}")
            print("this machine can run the cluster", file=sys.stderr)
            return 0
        if values.what == "build":
            build()
            return 0
        cluster = Cluster(default_folder())
        if values.what == "up":
            seconds = cluster.up([Path(image) for image in values.rest])
            print(f"ready after {seconds:.1f} s: export KUBECONFIG={cluster.plane.kubeconfig}", file=sys.stderr)
        elif values.what == "load":
            for node in cluster.nodes:
                for image in values.rest:
                    node.load(Path(image))
        elif values.what == "down":
            cluster.down()
        elif values.what == "kubeconfig":
            print(cluster.plane.kubeconfig)
        else:
            command = str(bin_dir() / "kubectl")
            os.execve(command, [command, *values.rest], cluster.environment())
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
