"""Where a host stands in its group, from PaddleNLP's variables."""

import pytest

from oarlock_runtime.errors import SettingError
from oarlock_runtime.server.place import place_of
from oarlock_runtime.settings import Settings

GROUP = {"MP_NNODE": "2", "MP_NUM": "4", "POD_IPS": "10.0.0.2,10.0.0.1", "POD_0_IP": "10.0.0.1", "HOST_IP": "10.0.0.2"}


def place(**changes: str) -> object:
    return place_of(Settings.load([], GROUP | changes))


def test_alone() -> None:
    alone = place_of(Settings())
    assert (alone.node, alone.world, list(alone.local_ranks), alone.split) == (0, 1, [0], False)


def test_rank_0_is_at_pod_0_ip_and_the_others_follow_in_order() -> None:
    second = place_of(Settings.load([], GROUP))
    assert (second.addresses, second.node, list(second.local_ranks)) == (("10.0.0.1", "10.0.0.2"), 1, [2, 3])
    first = place_of(Settings.load([], GROUP | {"HOST_IP": "10.0.0.1"}))
    assert (first.node, list(first.local_ranks)) == (0, [0, 1])
    assert [first.name_of(rank) for rank in range(4)] == [
        "10.0.0.1, process 0",
        "10.0.0.1, process 1",
        "10.0.0.2, process 0",
        "10.0.0.2, process 1",
    ]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_several_ranks_of_one_host_need_no_addresses(device: str) -> None:
    here = place_of(Settings.load(["--ranks", "2", "--device", device], {}))
    assert (here.addresses, list(here.local_ranks), here.split) == (("127.0.0.1",), [0, 1], True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MP_NUM": "3"}, "MP_NUM=3 is not a multiple of MP_NNODE=2"),
        ({"POD_IPS": ""}, "POD_IPS is not set: with MP_NNODE=2 it lists the 2 hosts"),
        ({"POD_IPS": "10.0.0.1"}, "lists 1 hosts where MP_NNODE=2 are wanted"),
        ({"POD_IPS": "10.0.0.1,10.0.0.1"}, "lists a host twice"),
        ({"POD_0_IP": ""}, "POD_0_IP is not set"),
        ({"POD_0_IP": "10.0.0.9"}, "POD_0_IP=10.0.0.9 is not one of POD_IPS=10.0.0.2,10.0.0.1"),
        ({"HOST_IP": "10.0.0.9"}, "HOST_IP=10.0.0.9 must be one of POD_IPS="),
        ({"HOST_IP": ""}, "HOST_IP is not set: it must be one of POD_IPS="),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        place(**changes)
