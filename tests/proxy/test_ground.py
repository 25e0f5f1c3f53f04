"""The sockets that a node listens on."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest

from proxy.ground import bind
from proxy.units import HostPort

NOT_HERE = "192.0.2.1"  # of a network for documentation: no machine has it

look_up = socket.getaddrinfo


def name(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Give a name these addresses, in this order."""

    def found(host: str, port: int, **kinds: Any) -> list[Any]:
        return [one for address in addresses for one in look_up(address, port, **kinds)]

    monkeypatch.setattr(socket, "getaddrinfo", found)


def test_a_name_is_bound_to_the_address_that_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    name(monkeypatch, NOT_HERE, "::1")
    with bind(HostPort("six.example", 0), "--listen") as listener:
        assert listener.getsockname()[0] == "::1"
    name(monkeypatch, "::1", "127.0.0.1")
    with bind(HostPort("both.example", 0), "--listen") as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_where_one_address_is_in_use_no_other_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients of the name would reach the other program at the first address."""
    name(monkeypatch, "127.0.0.1", "::1")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="already in use") as refused:
        bind(HostPort("both.example", taken.getsockname()[1]), "--listen")
    assert refused.value.errno == errno.EADDRINUSE


def test_a_name_that_cannot_be_bound_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    name(monkeypatch, NOT_HERE)
    said = r"cannot listen on far\.example:80 \(--mesh-listen\): Cannot assign requested address"
    with pytest.raises(OSError, match=said):
        bind(HostPort("far.example", 80), "--mesh-listen")

    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    said = r"cannot listen on nosuch\.invalid:80 \(--listen\): Name or service not known"
    with pytest.raises(OSError, match=said):
        bind(HostPort("nosuch.invalid", 80), "--listen")
