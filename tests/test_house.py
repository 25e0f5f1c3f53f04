"""The rules of the code base: which modules import which, what is pure, how long files are, what documents name."""

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

# Modules that decide without side effects: no await, no clock, no disk, no network. Their docstrings say "Pure".
PURE = {
    name
    for name, path in MODULES.items()
    if name.startswith("proxy.hub.") or re.search(r"\bPure\b", ast.get_docstring(ast.parse(path.read_text())) or "")
}
# What they may import besides each other: modules, and of modules with side effects single names without any.
PURE_IMPORTS = {
    *("__future__", "base64", "bisect", "calendar", "collections", "dataclasses", "enum", "functools", "hashlib"),
    *("heapq", "hmac", "ipaddress", "itertools", "json", "math", "msgspec", "multidict", "random", "re", "struct"),
    *("typing", "urllib.parse", "zlib"),
    *("aiohttp.web.Response", "time.strptime"),
}
PURE_WITHOUT = {"open", "print", "input"}  # the functions that need no import

# Third-party packages, and the only modules that may import each.
HOMES = {
    "click": r"proxy\.(cli|commands\..*)",
    "diskcache": r"proxy\.(database|records)",
    "huggingface_hub": r"proxy\.commands\..*",
    "prometheus_client": r"proxy\.admin\.metrics",
    "uvloop": r"proxy\.node",
    "zeroconf": r"mesh\.discovery\..*",
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


def impurities(code: str) -> Iterator[str]:
    tree = ast.parse(code)
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for_types = {id(node) for block in blocks for line in block.body for node in ast.walk(line)}  # these do not run
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await):
            yield "awaits"
        if isinstance(node, ast.Name) and node.id in PURE_WITHOUT:
            yield f"uses {node.id}"
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in for_types:
            origin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for name in (origin + alias.name for alias in node.names):
                if not any(f"{name}.".startswith(f"{known}.") for known in PURE | PURE_IMPORTS):
                    yield f"imports {name}"


@pytest.mark.parametrize("name", sorted(PURE))
def test_what_decides_is_pure(name):
    assert list(impurities(MODULES[name].read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "import time",
        "from time import monotonic",
        "from time import strptime, time",
        "import datetime",
        "import pathlib",
        "from mesh import store",
        "import mesh.store",
        "from mesh.store import Store",
        "from aiohttp import web",
        "open('blob')",
        "read = open",
        "print('hit')",
        "async def ask(): pass",
    ],
)
def test_what_is_not_pure_is_noticed(code):
    assert len(list(impurities(code))) == 1


@pytest.mark.parametrize("library", HOMES)
def test_libraries_stay_where_they_belong(library):
    users = {name for name, path in MODULES.items() if any(i.partition(".")[0] == library for i in imports(path))}
    assert [name for name in users if not re.fullmatch(HOMES[library], name)] == []


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
