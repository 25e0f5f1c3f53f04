"""What all jobs share: a stand-in Hub, contents, starting and stopping of nodes, and turning a load into a sample."""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from loadtests import client
from loadtests.client import Load, Report
from loadtests.measure import Sample
from loadtests.rivals import Rival, cpu_seconds
from tests.hub.process import HubProcess
from tests.node import NodeProcess

REPO = "acme/bench"
GIB = 1 << 30


class Bench:
    """The environment of a run; `stack` ends everything started in it. `size` is that of the large file, in bytes."""

    def __init__(self, stack: ExitStack, folder: Path, rounds: int, size: int) -> None:
        self.stack, self.folder, self.rounds, self.size = stack, folder, rounds, size
        self.files = folder / "files"
        self.files.mkdir(parents=True)
        self.hub = stack.enter_context(HubProcess(folder / "hub"))
        self._numbers = iter(range(1_000_000))
        self.sizes = {"large.bin": size, "middle.bin": size // 4, "small.bin": size // 32}
        for name, count in self.sizes.items():
            make_file(self.files / name, count)
        self.hub.folder.commit(REPO, {name: self.files / name for name in self.sizes})

    def scratch(self, name: str) -> Path:
        """Return the path of a new folder, which does not exist yet."""
        return self.folder / f"{name}-{next(self._numbers)}"

    @contextmanager
    def node(self, *flags: str, module: str = "proxy.cli", **environment: str) -> Iterator[NodeProcess]:
        """Run a node that starts empty, and delete its data when it ends."""
        data = self.scratch("node")
        with NodeProcess(
            data, self.hub.url, "--log-level", "warning", *flags, module=module, environment=environment
        ) as node:
            yield node
        shutil.rmtree(data, ignore_errors=True)

    def keep(self, rival: Rival | None) -> Rival | None:
        """Start a rival that runs as long as the bench."""
        return self.stack.enter_context(rival) if rival else None

    def url(self, server: str, name: str = "large.bin") -> str:
        return f"{server}/{REPO}/resolve/main/{name}"

    def signed(self, name: str = "large.bin") -> str:
        """Return the URL of a file at the origin's CDN, for servers that know nothing of the Hub."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())
        with opener.open(urllib.request.Request(self.url(self.hub.url, name), method="HEAD"), timeout=60) as answer:
            location: str = answer.headers["Location"]
        return location


def make_file(path: Path, size: int) -> None:
    """Write incompressible bytes, the same for the same size."""
    source = random.Random(size)
    with path.open("wb") as file:
        left = size
        while left:
            file.write(source.randbytes(min(left, 1 << 20)))
            left -= min(left, 1 << 20)


def run(load: Load) -> Report:
    """Run a load and return its report. Raises RuntimeError on any error."""
    report = client.run(load)
    if report.errors:
        raise RuntimeError(f"{load.urls[0]}: {'; '.join(report.errors)}")
    return report


def measure(load: Load, pid: int, value: str = "rate") -> Sample:
    """Run a load against the server with this process id. Raises like `run`."""
    before = cpu_seconds(pid)
    report = run(load)
    used = cpu_seconds(pid) - before
    return Sample(_value(report, value), used, report.cpu, report.first_byte, report.p50)


def _value(report: Report, value: str) -> float:
    return report.rate / 1e9 if value == "rate" else report.request_rate


def curl(url: str, pid: int) -> Sample:
    """Time curl for a whole file, following redirects as a Hub client does. The sample is in seconds."""
    before = cpu_seconds(pid)
    command = ["curl", "-sSfL", "--noproxy", "*", "-o", "/dev/null", "-w", "%{time_total} %{time_starttransfer}", url]
    used = children_cpu()
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return Sample(float(said[0]), cpu_seconds(pid) - before, children_cpu() - used, float(said[1]))


def children_cpu() -> float:
    """Return the CPU seconds, start-up included, of child processes that have ended: the cost of external clients."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Stay(urllib.request.HTTPRedirectHandler):
    """Returns redirects as answers and does not follow them."""

    def http_error_302(self, req, fp, code, msg, headers):  # type: ignore[no-untyped-def]
        return fp
