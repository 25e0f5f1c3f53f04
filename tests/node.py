"""A real node as a process, for tests, the demo and load tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

_START_SECONDS = 20.0
_TOP = Path(__file__).resolve().parents[1]


class NodeProcess:
    """A context manager around `hubmesh serve` on ports of its own. `flags` are added to its command line."""

    def __init__(
        self,
        data_dir: Path,
        origin: str,
        *flags: str,
        host: str = "127.0.0.1",
        mesh_host: str = "127.0.0.1",
        prefix: tuple[str, ...] = (),
        call: Callable[[Callable[[], bytes]], bytes] = lambda work: work(),
        environment: dict[str, str] | None = None,
        module: str = "proxy.cli",
        patience: float = _START_SECONDS,
        mdns: bool = False,
    ) -> None:
        """`prefix` precedes the command, to run it elsewhere (`ip netns exec …`); `call` makes requests from there.

        `module` is the module to run: the command line itself, or a load test's wrapper around it. `patience` is how
        many seconds the node may take to start. Without `mdns` it is started with `--no-mdns`.
        """
        self.data_dir = data_dir
        self.log_file = data_dir.with_name(data_dir.name + ".log")
        self._command = [
            *prefix,
            *(sys.executable, "-m", module, "serve"),
            *(
                "--listen",
                f"{host}:0",
                "--mesh-listen",
                f"{mesh_host}:0",
                "--data-dir",
                str(data_dir),
                "--origin",
                origin,
            ),
            *([] if mdns else ["--no-mdns"]),
            *flags,
        ]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HUBMESH_", "HF_"))}
        self._call = call
        self._patience = patience
        self._environment = inherited | {"NO_PROXY": "*"} | (environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.url = self.mesh = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.stop()

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the node and wait until it is ready. Raises RuntimeError with its log if it ends or is late."""
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        (self.data_dir / "node.json").unlink(missing_ok=True)
        self._log = self.log_file.open("ab")
        self._process = subprocess.Popen(
            self._command, cwd=_TOP, env=self._environment, stdout=self._log, stderr=self._log
        )
        until = time.monotonic() + self._patience
        while time.monotonic() < until:
            if (status := self._process.poll()) is not None:
                self.stop()
                raise RuntimeError(f"the node ended with {status}:\n{self.log()}")
            if self._is_ready():
                return
            time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"the node is not ready after {self._patience} s:\n{self.log()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, by default SIGTERM; SIGKILL follows after 20 s. Return the exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        try:
            status = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process = None
        if self._log is not None:
            self._log.close()
        return status

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.stop(signal.SIGKILL)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.get("/-/status"))
        return document

    def metric(self, name: str) -> float:
        """Return the sum of a counter's or gauge's values over all labels."""
        metrics = self.status()["metrics"]
        return float(sum(value for key, value in metrics.items() if key.partition("{")[0] == name))

    def get(self, path: str, **headers: str) -> bytes:
        """Return the body of a GET. Raises HTTPError for 4xx and 5xx."""
        request = urllib.request.Request(self.url + path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def fetch() -> bytes:
            with opener.open(request, timeout=60) as response:
                body: bytes = response.read()
            return body

        return self._call(fetch)

    def _is_ready(self) -> bool:
        try:
            said = json.loads((self.data_dir / "node.json").read_text())
            self.url, self.mesh = f"http://{said['listen']}", said["mesh_listen"]
            self.get("/-/ready")
        except urllib.error.HTTPError as error:
            error.close()  # not ready; an unclosed error would keep its socket open
            return False
        except (OSError, ValueError, urllib.error.URLError):
            return False
        return True


def until(is_so: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait until `is_so()` is true; `what` is the message of the AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def meet(nodes: Sequence[NodeProcess]) -> None:
    """Wait until each of the nodes knows all the others, and no other node."""
    until(lambda: all(node.metric("hubmesh_peers") == len(nodes) - 1 for node in nodes), "they do not find each other")
