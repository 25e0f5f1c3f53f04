"""A node as a process of its own, for the demo, load tests and benchmarks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from proxy.admin.status import Status, decode

if TYPE_CHECKING:
    from typing import Self

_START_SECONDS = 30.0
_STOP_SECONDS = 20.0


class NodeProcess:
    """A context manager around `hubmesh serve` on free ports of the loopback. Its log is `data_dir`/log.

    Finds nobody by itself: name another node's `mesh_listen` with `--seed` for that.
    """

    def __init__(self, data_dir: Path, origin: str, *flags: str, prefix: tuple[str, ...] = ()) -> None:
        """`flags` are added to the command line; `prefix` is put before it, to run it elsewhere (`ip netns exec …`)."""
        self.data_dir = data_dir
        self.url = self.mesh_listen = ""
        self._command = [
            *(*prefix, sys.executable, "-c", "from proxy.cli import main; main()", "serve"),
            *("--listen", "127.0.0.1:0", "--mesh-listen", "127.0.0.1:0", "--no-mdns"),
            *("--origin", origin, "--data-dir", str(data_dir), *flags),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._log: TextIO | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        (self.data_dir / "node.json").unlink(missing_ok=True)
        self._log = (self.data_dir / "log").open("a")
        self._process = subprocess.Popen(self._command, env=clean_environment(), stdout=self._log, stderr=self._log)
        try:
            record = json.loads(self._wait(self._read_record))
            self.url, self.mesh_listen = f"http://{record['listen']}", record["mesh_listen"]
            self._wait(lambda: self.get("/-/ready"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it as an operator would; by force if it does not."""
        assert self._process is not None
        assert self._log is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._log.close()

    def kill(self) -> None:
        """End it without a chance to put anything in order."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def get(self, path: str) -> bytes:
        """What it answers on its client port. Raises OSError."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}{path}", timeout=10) as answer:
            body: bytes = answer.read()
            return body

    def status(self) -> Status:
        return decode(self.get("/-/status"))

    def figure(self, name: str) -> int:
        """A counter without labels, such as "origin_received_bytes_total"."""
        return int(self.status().metrics[f"hubmesh_{name}"])

    def log(self) -> str:
        return (self.data_dir / "log").read_text()

    def _read_record(self) -> bytes:
        return (self.data_dir / "node.json").read_bytes()

    def _wait(self, look: object) -> bytes:
        assert callable(look)
        assert self._process is not None
        give_up_at = time.monotonic() + _START_SECONDS
        while True:
            try:
                found: bytes = look()
                return found
            except (OSError, urllib.error.URLError):
                if self._process.poll() is not None or time.monotonic() > give_up_at:
                    raise RuntimeError(f"the node did not start:\n{self.log()}") from None
            time.sleep(0.02)


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of ours, of Hugging Face clients, and proxies."""
    names = ("HUBMESH_", "HF_", "HUGGING", "TRANSFORMERS_", "XDG_")
    kept = {n: v for n, v in os.environ.items() if not n.startswith(names) and not n.lower().endswith("_proxy")}
    return kept | more
