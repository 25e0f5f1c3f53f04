"""Where the nodes of a load test run: on loopback, or each in a network namespace with links of a given speed."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_BURST_SECONDS = 0.01


class Site:
    """A place where nodes run: its address, the command prefix to run a program there, and how threads enter it."""

    def __init__(self, host: str, namespace: str = "") -> None:
        self.host = host
        self.namespace = namespace

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace) if self.namespace else ()

    def enter(self) -> None:
        """Move the calling thread into the namespace for the rest of the thread's life."""
        if self.namespace:
            fd = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"cannot enter {self.namespace}")
            finally:
                os.close(fd)

    def call(self, work: Callable[[], T]) -> T:
        """Call `work` there and return its result, or raise its exception."""
        if not self.namespace:
            return work()
        results: list[T] = []
        errors: list[BaseException] = []

        def inside() -> None:
            try:
                self.enter()
                results.append(work())
            except BaseException as error:  # raised again by the caller
                errors.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]


class Network:
    """`count` sites and one for the Hub. With `isolated`, namespaces on a bridge, made on entry and removed on exit.

    Rates are in bytes per second: of what leaves the Hub, leaves each node and enters each node. None is unlimited.
    """

    def __init__(self, count: int, origin: int | None, up: int | None, down: int | None, isolated: bool) -> None:
        self._rates = (origin, up, down)
        self._isolated = isolated
        self._name = f"hm{os.getpid() % 10000}"
        if isolated:
            self.hub = Site("10.77.255.1", f"{self._name}-hub")
            self.sites = [Site(f"10.77.{n // 200}.{n % 200 + 1}", f"{self._name}-{n}") for n in range(count)]
        else:
            self.hub = Site("127.0.0.1")
            self.sites = [Site("127.0.0.1") for _ in range(count)]

    def __enter__(self) -> Self:
        if self._isolated:
            try:
                self._build()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._isolated:
            for site in (self.hub, *self.sites):
                subprocess.run(["ip", "netns", "delete", site.namespace], check=False, capture_output=True)
            subprocess.run(["ip", "link", "delete", f"{self._name}br"], check=False, capture_output=True)

    def _build(self) -> None:
        bridge = f"{self._name}br"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        origin, up, down = self._rates
        for number, site in enumerate((self.hub, *self.sites)):
            outside, inside = f"{self._name}v{number}", "eth0"
            _ip("netns", "add", site.namespace)
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", site.namespace)
            _ip("link", "set", outside, "master", bridge, "up")
            _ip("-n", site.namespace, "addr", "add", f"{site.host}/16", "dev", inside)
            _ip("-n", site.namespace, "link", "set", inside, "up")
            _ip("-n", site.namespace, "link", "set", "lo", "up")
            leaving = origin if site is self.hub else up
            if leaving:
                _limit(leaving, inside, site.namespace, is_host=True)
            if down and site is not self.hub:
                _limit(down, outside, "")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _limit(rate: int, device: str, namespace: str, *, is_host: bool = False) -> None:
    """Limit what leaves a device by a token bucket. `rate` is in bytes per second.

    Behind the bucket is a buffer of 100 ms, as in a switch, or with `is_host` the default queue of a host's device.
    """
    burst = max(64 << 10, int(rate * _BURST_SECONDS))
    _tc(
        *(namespace, device, "root", "handle", "1:", "tbf"),
        *("rate", f"{rate * 8}bit", "burst", str(burst), "latency", "100ms"),
    )
    if is_host:
        _tc(namespace, device, "parent", "1:1", "handle", "10:", "pfifo_fast")


def _tc(namespace: str, device: str, *arguments: str) -> None:
    where = ["-n", namespace] if namespace else []
    subprocess.run(["tc", *where, "qdisc", "add", "dev", device, *arguments], check=True, capture_output=True)
