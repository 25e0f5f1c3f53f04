"""The load of a site on its nodes: storms of from_pretrained, range readers, API calls and slow clients.

    locust -f loadtests/locustfile.py --headless -u 50 -r 10 -t 60s --host http://localhost:8090
    locust -f loadtests/locustfile.py --host http://localhost:8090           its page is at http://localhost:8089
    python -m loadtests.site --nodes 3 -- --headless -u 50 -r 10 -t 60s      a stand-in Hub and a small mesh for it

Users are spread over the nodes named in NODES (comma-separated; default: `--host`). REPO names the repository that they
request. Watch the failures (there should be none), the 95th percentile of `HEAD resolve` and `tree` (single-digit
milliseconds), `first byte` of whole files, and `hubmesh_origin_received_bytes_total` of the nodes: one copy in all.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from typing import Any

from locust import FastHttpUser, between, constant, task

REPO = os.environ.get("REPO", "acme/model")
NODES = [node for node in os.environ.get("NODES", "").split(",") if node]
_AGENT = {"User-Agent": "hf_hub/2.4.0; python/3.11; locust"}
_RANGE = 256 << 10
_turn = itertools.count()


class _Client(FastHttpUser):
    """A client on the machine of one node."""

    abstract = True

    def on_start(self) -> None:
        if NODES:
            self.client.base_url = NODES[next(_turn) % len(NODES)]

    def tree(self) -> list[dict[str, Any]]:
        """Return the files of the repository."""
        with self.client.get(
            f"/api/models/{REPO}/tree/main?recursive=true", name="tree", headers=_AGENT, catch_response=True
        ) as answer:
            entries: list[dict[str, Any]] = answer.json() if answer.ok else []
        return [entry for entry in entries if entry["type"] == "file"]

    def url(self, path: str) -> str:
        return f"/{REPO}/resolve/main/{path}"

    def whole(self, path: str, size: int, pause: float = 0.0) -> None:
        """Read a file to its end, pausing `pause` seconds after each part. Fails if bytes are missing at the end."""
        began = time.perf_counter()
        with self.client.get(
            self.url(path), name="whole file", headers=_AGENT, stream=True, catch_response=True
        ) as answer:
            come = 0
            while part := answer.stream.read(_RANGE):
                if not come:
                    self.environment.events.request.fire(
                        request_type="GET",
                        name="first byte",
                        response_time=(time.perf_counter() - began) * 1000,
                        response_length=0,
                        exception=None,
                        context={},
                    )
                come += len(part)
                if pause:
                    time.sleep(pause)  # gevent's sleep: other users go on
            if come != size:
                answer.failure(f"{come} of {size} bytes")


class FromPretrained(_Client):
    """A job that starts: repository info, all small files, then the weights."""

    weight = 5
    wait_time = between(1, 5)

    @task
    def load(self) -> None:
        self.client.get(f"/api/models/{REPO}", name="info", headers=_AGENT)
        for entry in sorted(self.tree(), key=lambda entry: entry["size"]):
            self.client.head(self.url(entry["path"]), name="HEAD resolve", headers=_AGENT)
            self.whole(entry["path"], entry["size"])


class RangeReader(_Client):
    """Safetensors headers, dataset columns, HfFileSystem: small ranges anywhere in the file."""

    weight = 3
    wait_time = between(0.05, 0.3)
    files: list[dict[str, Any]]

    def on_start(self) -> None:
        super().on_start()
        self.files = [entry for entry in self.tree() if entry["size"] > 2 * _RANGE]

    @task
    def read(self) -> None:
        entry = random.choice(self.files)
        start = random.randrange(entry["size"] - _RANGE)
        wanted = {"Range": f"bytes={start}-{start + _RANGE - 1}"}
        with self.client.get(
            self.url(entry["path"]), name="range", headers=_AGENT | wanted, catch_response=True
        ) as answer:
            if answer.status_code != 206 or len(answer.content or b"") != _RANGE:
                answer.failure(f"HTTP {answer.status_code}, {len(answer.content or b'')} bytes")


class Caller(_Client):
    """Pages, pipelines and notebooks that look things up."""

    weight = 2
    wait_time = between(0.1, 1)

    @task(3)
    def info(self) -> None:
        self.client.get(f"/api/models/{REPO}/revision/main", name="revision", headers=_AGENT)

    @task(1)
    def list(self) -> None:
        self.tree()

    @task(1)
    def missing(self) -> None:
        with self.client.head(
            self.url("adapter_config.json"), name="HEAD of what is not there", headers=_AGENT, catch_response=True
        ) as answer:
            if answer.status_code == 404:
                answer.success()


class Slow(_Client):
    """A notebook on a slow line. It must not slow down other clients."""

    weight = 1
    wait_time = constant(5)

    @task
    def load(self) -> None:
        files = self.tree()
        if files:
            largest = max(files, key=lambda entry: entry["size"])
            self.whole(largest["path"], largest["size"], pause=0.05)
