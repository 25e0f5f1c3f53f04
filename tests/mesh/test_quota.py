"""How often a host may act: a burst, then at a low rate, whichever of its own addresses it uses."""

import pytest

from mesh.quota import Quota


def test_some_times_at_once_and_then_one_by_one():
    quota = Quota(3, 4.0)
    assert [quota.take("10.0.0.1", 100.0) for _ in range(5)] == [True, True, True, False, False]
    assert quota.take("10.0.0.2", 100.0)
    assert not quota.take("10.0.0.1", 103.9)
    assert [quota.take("10.0.0.1", 104.0) for _ in range(2)] == [True, False]
    assert [quota.take("10.0.0.1", 200.0) for _ in range(4)] == [True, True, True, False]


def test_several_turns_are_taken_together_or_not_at_all():
    quota = Quota(10, 1.0)
    assert [quota.take("10.0.0.1", 0.0, turns) for turns in (6, 5, 4, 1, 0)] == [True, False, True, False, True]
    assert [quota.take("10.0.0.1", 3.0, turns) for turns in (4, 3)] == [False, True]


@pytest.mark.parametrize("hosts", [["2001:db8::1", "2001:db8::2:0:0:1"], ["10.0.0.1", "::ffff:10.0.0.1"], ["", ""]])
def test_one_machine_is_one_host(hosts):
    quota = Quota(1, 4.0)
    assert [quota.take(host, 0.0) for host in hosts] == [True, False]


def test_not_more_hosts_are_remembered_than_there_is_room_for():
    quota = Quota(1, 4.0)
    for n in range(5000):
        assert quota.take(f"10.0.{n // 256}.{n % 256}", 0.0)
    assert len(quota._free_at) <= 1000
    assert not quota.take("10.0.19.135", 0.0)
