"""Every command in the documents that new users follow is run, line by line, in front of a stand-in Hub."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.process import HubProcess

ROOT = Path(__file__).parents[1]
TEXTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
RUN = ["README.md", "docs/quick-start.md", "docs/operating.md", "docs/security.md", "docs/clients.md"]
# Programs that a document's commands need besides our own.
PROGRAMS = {"docs/clients.md": ("git", "git-lfs", "aria2c", "wget", "curl")}

# Commands that need the internet, or change this machine: tested elsewhere, or by people.
NOT_HERE = ("pip install", "python3 -m venv", "~/.local/share/hubmesh/bin/pip", "make ", "docker ")
REPOS = ("sentence-transformers/all-MiniLM-L6-v2", "openai-community/gpt2", "owner/name")
PORTS = ("8090", "8091", "8092", "8093")


def commands(text: str) -> list[str]:
    """Return the lines of all sh blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / text).read_text(), re.DOTALL | re.MULTILINE)
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


class Shell:
    """Runs lines one after the other as a user would, with a home directory and ports of its own."""

    def __init__(self, home: Path, hub: HubProcess) -> None:
        self.ports = {port: str(free_port()) for port in PORTS}
        self.home = home
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HUBMESH_ORIGIN": hub.url,
            "HUBMESH_MDNS": "false",
            "HUBMESH_LISTEN": f"127.0.0.1:{self.ports['8090']}",
            "HUBMESH_MESH_LISTEN": f"127.0.0.1:{self.ports['8091']}",
            "NO_PROXY": "*",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def run(self, line: str) -> str:
        """Run a line and return its output; fails if it does. A node is left running once it is ready."""
        line = re.sub(r"\b809\d\b", lambda port: self.ports[port[0]], line).replace("/tmp/", f"{self.home}/")
        line = line.replace("0.0.0.0", "127.0.0.1")
        if line.startswith("hubmesh serve") and "--help" not in line:
            listen = re.search(r"--listen \S+:(\d+)", line)
            return self._serve(line, listen[1] if listen else self.ports["8090"])
        if match := re.match(r"export (\w+)=(\S+)\Z", line):
            self.environment[match[1]] = match[2].replace("$PATH", self.environment["PATH"])
            return ""
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.home, env=self.environment, capture_output=True, text=True, timeout=60
        )
        # The doctor may complain in this set-up; it is enough that it runs.
        expected = (0, 1) if line == "hubmesh doctor" else (0,)
        assert done.returncode in expected, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _serve(self, line: str, port: str) -> str:
        log = (self.home / f"node-{port}.log").open("wb")
        self.nodes.append(
            subprocess.Popen(
                ["bash", "-c", f"exec {line}"], cwd=self.home, env=self.environment, stdout=log, stderr=log
            )
        )
        log.close()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        until = time.monotonic() + 20
        while True:
            try:
                opener.open(f"http://127.0.0.1:{port}/-/ready", timeout=5).close()
                return ""
            except (OSError, urllib.error.URLError):
                said = (self.home / f"node-{port}.log").read_text()
                assert self.nodes[-1].poll() is None, f"{line}\n{said}"
                assert time.monotonic() < until, f"{line} is not ready\n{said}"
                time.sleep(0.05)

    def close(self) -> None:
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def shell(tmp_path: Path, hub: HubProcess) -> Iterator[Shell]:
    for repo in REPOS:
        files = {"model.safetensors": os.urandom(2_000_000), "config.json": b"{}", "README.md": b"# A model\n"}
        hub.folder.commit(repo, files)
    hub.folder.commit("owner/name", {"data/a.parquet": os.urandom(50_000), "b.txt": b"b"}, repo_type="datasets")
    home = tmp_path / "home"
    home.mkdir()
    shell = Shell(home, hub)
    yield shell
    shell.close()


@pytest.mark.parametrize("text", RUN)
def test_every_command_does_what_it_should(text: str, shell: Shell, hub: HubProcess) -> None:
    missing = [program for program in PROGRAMS.get(text, ("curl", "openssl")) if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    lines = commands(text)
    assert lines
    if not any(line.startswith("hubmesh serve") and "--help" not in line for line in lines):
        shell.run("hubmesh serve")
        for repo in REPOS:  # what an operator already has there
            shell.run(f"HF_ENDPOINT=http://localhost:8090 hf download {repo}")
    said = {line: shell.run(line) for line in lines if not line.startswith(NOT_HERE)}
    assert len(said) >= 2
    if text == "docs/clients.md":
        files = [shell.home / "name/model.safetensors", shell.home / "model.safetensors"]
        assert [path.stat().st_size for path in files] == [2_000_000] * 2
        assert (shell.home / "rows/data/a.parquet").stat().st_size == 50_000
        assert (shell.home / "first-bytes").read_bytes() == files[0].read_bytes()[:100]
    if text == "docs/quick-start.md":
        model = "sentence-transformers/all-MiniLM-L6-v2"
        assert model in said["hubmesh ls"]
        second = said["hubmesh status --listen 127.0.0.1:8092"]
        assert "1 peer" in second or "127.0.0.1" in second, second
        copies = [count for path, count in hub.stats()["bytes"].items() if count > 1_000_000]
        assert sum(copies) == 2_000_000, "the second node and the third cache cost the Hub nothing"


@pytest.mark.parametrize("text", TEXTS)
def test_links_lead_somewhere(text: str) -> None:
    words = (ROOT / text).read_text()
    links = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]+)", words) + re.findall(r'(?:src|srcset)="([^"]+)"', words)
    for link in links:
        assert ((ROOT / text).parent / link).exists(), link


@pytest.mark.parametrize("text", TEXTS)
def test_flags_and_metrics_that_are_named_exist(text: str) -> None:
    from proxy import cli

    words = (ROOT / text).read_text()
    flags = {"--include", "--exclude", "--help", "--dry-run", "--revision", "--local-dir"}
    for name in cli.hubmesh.list_commands(None):  # type: ignore[arg-type]
        command = cli.hubmesh.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        flags |= {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    for code in re.findall(r"`([^`\n]+)`", words):
        if code.startswith(("-", "hubmesh ")):
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code))
            assert named <= flags, code


def test_all_texts_are_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", (ROOT / "README.md").read_text()))
    ours = {text for text in TEXTS if text.startswith("docs/")}
    unlinked = ours - linked - {"docs/benchmarks.md", "docs/assignment-policy.md"}
    assert not unlinked


def test_every_row_of_the_checklist_has_a_test_and_a_way_to_break_it() -> None:
    from tests.mutate import MUTATIONS

    rows: dict[int, list[str]] = {}
    table = re.findall(r"^\| (\d+) \|.*\| ([^|]*) \|$", (ROOT / "docs/conformance.md").read_text(), re.MULTILINE)
    for row, tests in table:
        named = re.findall(r"`(test_\w+)`(?: in `(tests/[\w/.]+)`)?", tests)
        rows[int(row)] = [test for test, _ in named]
        assert named, row
        for test, file in named:
            assert f"def {test}(" in (ROOT / (file or "tests/test_checklist.py")).read_text(), test
    assert list(rows) == list(range(1, 36))
    assert {mutation.row for mutation in MUTATIONS} == set(rows)
    told = {test for tests in rows.values() for test in tests}
    assert set(re.findall(r"def (test_row_\w+)\(", (ROOT / "tests/test_checklist.py").read_text())) <= told
    for mutation in MUTATIONS:
        assert not mutation.test or mutation.test.rpartition("::")[2] in rows[mutation.row]
        for name, old, _ in mutation.edits:
            assert (ROOT / name).read_text().count(old) == 1, f"row {mutation.row}: {old!r} in {name}"
