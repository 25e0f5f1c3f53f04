"""The rules of the house: which modules import which, what is pure, how long files are, what the documents promise."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import cli

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in ("mesh", "proxy")
    for path in sorted((ROOT / package).rglob("*.py"))
}
MAX_LINES = 400

# Modules that decide without side effects: no await, no clock, no disk, no network.
PURE = [
    "mesh.books",
    "mesh.content",
    "mesh.holdings",
    "mesh.ledger",
    "mesh.messages",
    "mesh.placement",
    "mesh.policy",
    "mesh.queue",
    "mesh.speeds",
    "mesh.stated",
    "proxy.caching",
    "proxy.failing",
    "proxy.hub.access",
    "proxy.hub.aliases",
    "proxy.hub.client",
    "proxy.hub.cors",
    "proxy.hub.documents",
    "proxy.hub.freshness",
    "proxy.hub.lfs",
    "proxy.hub.metadata",
    "proxy.hub.questions",
    "proxy.hub.rewrite",
    "proxy.hub.urls",
    "proxy.hub.xet",
    "proxy.ranges",
]
PURE_IMPORTS = {
    *("__future__", "base64", "bisect", "calendar", "collections", "dataclasses", "enum", "functools", "hashlib"),
    *("heapq", "hmac"),
    *("itertools", "json", "math", "msgspec", "random", "re", "struct", "typing", "urllib.parse", "zlib"),
    "time",  # to parse dates in text; uses of the clock itself are searched for below
}
CLOCKS = {"time", "time_ns", "monotonic", "perf_counter", "sleep", "now", "utcnow", "today"}

# Third-party packages, and the only modules that may import each.
HOMES = {
    "click": r"proxy\.(cli|commands\..*)",
    "diskcache": r"proxy\.(database|records)",
    "huggingface_hub": r"proxy\.commands\..*",
    "prometheus_client": r"proxy\.admin\.metrics",
    "uvloop": r"proxy\.node",
    "zeroconf": r"mesh\.discovery\..*",
}

# Modules that start tasks themselves, as they await them or log what they raise. All others use `mesh.tasks.Tasks`.
STARTERS = {
    *("mesh.exchange", "mesh.questions", "mesh.tasks"),
    *("proxy.flights", "proxy.preheat", "proxy.waiting"),
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_mesh_does_not_know_the_proxy():
    for name, path in MODULES.items():
        if name.partition(".")[0] == "mesh":
            assert "proxy" not in {module.partition(".")[0] for module in imports(path)}, name


@pytest.mark.parametrize("name", PURE)
def test_what_decides_is_pure(name):
    tree = ast.parse(MODULES[name].read_text())
    for node in ast.walk(tree):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"{name} awaits"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert not (node.value.id in ("time", "datetime") and node.attr in CLOCKS), f"{name} reads the clock"
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                module = node.module or "" if isinstance(node, ast.ImportFrom) else alias.name
                module = full if (full := f"{module}.{alias.name}") in MODULES else module
                known = module in PURE or module in PURE_IMPORTS or module.partition(".")[0] in PURE_IMPORTS
                assert known, f"{name} imports {module}"


@pytest.mark.parametrize("library", HOMES)
def test_libraries_stay_where_they_belong(library):
    users = {name for name, path in MODULES.items() if any(i.partition(".")[0] == library for i in imports(path))}
    assert [name for name in users if not re.fullmatch(HOMES[library], name)] == []


def test_no_task_fails_unseen():
    """What a task raises is lost if nobody awaits it and nothing logs it, and those who wait for its work hang."""
    calls = {name: re.search(r"\.(create_task|ensure_future)\(", path.read_text()) for name, path in MODULES.items()}
    assert {name for name, call in calls.items() if call} == STARTERS


def test_files_stay_short_and_say_what_they_are_for():
    assert [name for name, path in MODULES.items() if len(path.read_text().splitlines()) > MAX_LINES] == []
    for name, path in MODULES.items():
        text = path.read_text()
        assert not text or ast.get_docstring(ast.parse(text)), f"{name} does not say what it is for"


@pytest.mark.parametrize("text", ["README.md", "CONTRIBUTING.md"])
def test_the_texts_name_commands_flags_and_files_that_exist(text):
    words = (ROOT / text).read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = set(cli.hubmesh.list_commands(None))
    code = re.findall(r"`([^`\n]+)`", words)
    code += [line for block in re.findall(r"```sh\n(.*?)```", words, re.DOTALL) for line in block.splitlines()]
    assert code
    for line in code:
        if match := re.match(r"make ([a-z-]+)", line):
            assert match[1] in targets, line
        if match := re.match(r"hubmesh ([a-z]+)", line):
            assert match[1] in commands, line
            known = {flag for option in cli.hubmesh.get_command(None, match[1]).params for flag in option.opts}
            asked = set(re.findall(r"(?<=\s)--[a-z-]+", line.partition("#")[0])) - {"--help"}
            assert asked <= known, line
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", words):
        assert (ROOT / link).exists(), link
