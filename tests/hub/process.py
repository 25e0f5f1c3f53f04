"""The stand-in Hub as a process: start it, control it and stop it, for tests, the demo and load tests."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.hub.repos import HubFolder

if TYPE_CHECKING:
    from typing import Self

    from tests.mesh.certificates import Certificate

_TOP = Path(__file__).resolve().parents[2]


class HubProcess:
    """A context manager around `python -m tests.hub`. `folder` makes and changes its repositories."""

    def __init__(
        self,
        root: Path,
        *,
        host: str = "127.0.0.1",
        prefix: tuple[str, ...] = (),
        tls: Certificate | None = None,
        cdn_tls: Certificate | None = None,
    ) -> None:
        """`prefix` precedes the command, to run it elsewhere (`ip netns exec …`).

        `tls` and `cdn_tls` are the certificates with which the Hub and its CDN speak TLS; without them it is plain
        HTTP.
        """
        self.folder = HubFolder(root)
        self._command = [*prefix, sys.executable, "-m", "tests.hub", "--root", str(root), "--host", host]
        for flag, certificate in (("--tls", tls), ("--cdn-tls", cdn_tls)):
            if certificate is not None:
                self._command += [flag, str(certificate.cert), str(certificate.key)]
        self._trust = None if tls is None else ssl.create_default_context(cafile=str(tls.ca))
        self.url = self.cdn_url = ""
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, cwd=_TOP, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the stand-in Hub did not start: exit {self._process.wait()}")
        ready = json.loads(line)
        self.url, self.cdn_url, self.pid = ready["hub"], ready["cdn"], ready["pid"]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def turn(self, **knobs: Any) -> None:
        """Set some of the fields of `tests.hub.state.Knobs`."""
        self._ask("/_/knobs", json.dumps(knobs).encode())

    def reset(self) -> None:
        """Reset all counts."""
        self._ask("/_/reset", b"")

    def stats(self) -> dict[str, Any]:
        """`requests` by "METHOD kind path", `by_kind`, `bytes` by path, `total_bytes`, `seen` headers by kind."""
        document: dict[str, Any] = json.loads(self._ask("/_/stats", None))
        return document

    def _ask(self, path: str, body: bytes | None) -> bytes:
        request = urllib.request.Request(self.url + path, data=body)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._trust)
        )
        with opener.open(request, timeout=10) as response:
            answer: bytes = response.read()
        return answer
