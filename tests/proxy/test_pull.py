"""`hubmesh pull` as a process of its own, from a node that serves one small repository."""

import asyncio
import hashlib
import os
import sys

import pytest
from aiohttp import web

from proxy.admin.metrics import Metrics
from proxy.admin.routes import add_routes
from proxy.commands.progress import Progress, Stopped
from tests.proxy.nodes import PaperNode

COMMIT = "c" * 40
FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": os.urandom(300_000),
    "sub/deep/vocab.txt": b"words\n" * 1000,
    "sub/notes.md": b"",
}


class Repository:
    """Implements just enough of the Hub for one client."""

    def __init__(self) -> None:
        self.wrong: set[str] = set()  # paths whose next body has a wrong byte
        self.bodies: list[str] = []
        self.tokens: set[str] = set()
        self.is_away = self.is_cut = False  # file requests are no longer answered; bodies end in the middle

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/api/models/acme/tiny", self.info)
        app.router.add_get("/api/models/acme/tiny/revision/{revision}", self.info)
        app.router.add_get(f"/api/models/acme/tiny/tree/{COMMIT}", self.tree)
        app.router.add_get(f"/api/models/acme/tiny/tree/{COMMIT}/{{below}}", self.tree)
        app.router.add_post(f"/api/models/acme/tiny/paths-info/{COMMIT}", self.paths)
        app.router.add_get(f"/acme/tiny/resolve/{COMMIT}/{{path:.*}}", self.file)
        app.router.add_get("/api/models/acme/none", self.nothing)

    async def nothing(self, _: web.Request) -> web.Response:
        return web.Response(status=404, headers={"X-Error-Code": "RepoNotFound"})

    async def info(self, request: web.Request) -> web.Response:
        self.tokens.add(request.headers.get("Authorization", ""))
        if request.match_info.get("revision", "main") != "main":
            return web.Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        return web.json_response({"id": "acme/tiny", "sha": COMMIT, "siblings": []})

    async def tree(self, request: web.Request) -> web.Response:
        below = request.match_info.get("below", "")
        if below in FILES or not any(path.startswith(below) for path in FILES):
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        return web.json_response([self.entry(path) for path in FILES if path.startswith(below)])

    async def paths(self, request: web.Request) -> web.Response:
        asked = (await request.post()).getall("paths")
        folder = {"type": "directory", "path": "sub", "oid": "d" * 40, "size": 0}
        return web.json_response(
            [folder if path == "sub" else self.entry(path) for path in asked if path in [*FILES, "sub"]]
        )

    async def file(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        data, entry = FILES[path], self.entry(path)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{entry.get("lfs", entry)["oid"]}"'}
        if self.is_away:
            return web.Response(status=403, headers={"X-Error-Message": "the Hub cannot be reached"})
        if self.is_cut and request.method == "GET":
            response = web.StreamResponse(headers=headers)
            response.content_length = len(data)
            await response.prepare(request)
            await response.write(data[:10])
            assert request.transport is not None
            request.transport.close()
            return response  # type: ignore[return-value]
        if request.method == "GET":
            self.bodies.append(path)
            if path in self.wrong:
                self.wrong.discard(path)
                data = bytes([data[0] ^ 1]) + data[1:]
        return web.Response(body=data, headers=headers)

    def entry(self, path: str) -> dict[str, object]:
        data = FILES[path]
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": oid}
        if path.endswith(".safetensors"):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry


@pytest.fixture
def repository():
    return Repository()


@pytest.fixture
async def pull(repository, home, aiohttp_server):
    """A function that runs the command and returns (exit code, stdout, stderr)."""
    node = PaperNode()
    app = web.Application()
    add_routes(app, node, Metrics(node.stats))
    repository.add_routes(app)
    server = await aiohttp_server(app)

    async def pull(*arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from proxy.cli import main; main()", "pull", *arguments),
            *("--listen", f"127.0.0.1:{server.port}"),
            env={**os.environ, "HF_HOME": str(home / "hf"), "http_proxy": "http://127.0.0.1:1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    return pull


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_a_repository_goes_to_the_client_cache(pull, repository, home):
    code, out, err = await pull("hf://acme/tiny", "--token", "hf_one")
    assert code == 0, err
    snapshot = home / "hf" / "hub" / "models--acme--tiny" / "snapshots" / COMMIT
    assert out.strip() == str(snapshot)
    assert tree(snapshot) == FILES
    assert "files: 4, 306 kB in" in err
    assert repository.tokens == {"Bearer hf_one"}
    assert (await pull("acme/tiny", "--quiet"))[::2] == (0, "")
    assert sorted(repository.bodies) == sorted(FILES)  # nothing was fetched twice


async def test_globs_choose(pull, tmp_path):
    dest = tmp_path / "dest"
    code, out, _ = await pull(
        "hf://acme/tiny@main", "-O", str(dest), "--include", "*.json", "--include", "sub/*", "--exclude", "*.md"
    )
    assert (code, out) == (0, f"{dest}\n")
    assert set(tree(dest)) == {"config.json", "sub/deep/vocab.txt"}


async def test_a_folder_goes_below_the_directory_named(pull, tmp_path):
    assert (await pull("hf://acme/tiny/sub", "-r", "-O", str(tmp_path / "dest")))[0] == 0
    assert tree(tmp_path / "dest") == {"deep/vocab.txt": FILES["sub/deep/vocab.txt"], "notes.md": b""}


async def test_a_file_goes_to_the_name_given_and_not_twice(pull, repository, tmp_path):
    for _ in range(2):
        assert (await pull("hf://acme/tiny/model.safetensors", "-O", str(tmp_path / "w.bin")))[0] == 0
    assert (tmp_path / "w.bin").read_bytes() == FILES["model.safetensors"]
    assert repository.bodies == ["model.safetensors"]
    (tmp_path / "w.bin").write_bytes(b"changed")
    assert (await pull("hf://acme/tiny/model.safetensors", "-O", str(tmp_path / "w.bin")))[0] == 0
    assert (tmp_path / "w.bin").read_bytes() == FILES["model.safetensors"]
    assert {path.name for path in tmp_path.iterdir() if path.name != "hf"} == {"w.bin"}


async def test_wrong_bytes_are_fetched_again(pull, repository, tmp_path):
    repository.wrong = {"model.safetensors"}
    code, _, err = await pull("hf://acme/tiny/model.safetensors", "-O", str(tmp_path / "w.bin"))
    assert code == 0, err
    assert (tmp_path / "w.bin").read_bytes() == FILES["model.safetensors"]
    assert repository.bodies == ["model.safetensors"] * 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["hf://acme/none"], 3, "there is no models/acme/none"),
        (["hf://acme/tiny@v9"], 3, "models/acme/tiny has no revision v9"),
        (["hf://acme/tiny/none.bin"], 3, "there is no none.bin in models/acme/tiny"),
        (["hf://acme/tiny", "--include", "*.gguf"], 3, "no file in hf://acme/tiny matches"),
        (["hf://acme/tiny/sub"], 2, "sub is a folder: add -r"),
        (["hf://acme/tiny/config.json", "-r"], 2, "config.json is a file: leave out -r"),
        (["hf://acme/tiny/none", "-r"], 3, "there is no none in models/acme/tiny"),
        (["https://example.org"], 2, "is not a repository"),
    ],
)
async def test_what_cannot_be_pulled_is_one_line_and_its_own_exit_code(pull, arguments, code, message):
    got, out, err = await pull(*arguments)
    assert (got, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("what", "message"), [("is_away", "cannot be downloaded now"), ("is_cut", "broke off")])
async def test_what_fails_on_the_way_is_one_line_and_not_taken_for_missing(pull, repository, tmp_path, what, message):
    setattr(repository, what, True)
    code, out, err = await pull("hf://acme/tiny/model.safetensors", "-O", str(tmp_path / "w.bin"))
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    assert message in err.splitlines()[-1]


class Terminal:
    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_the_picture_of_progress():
    progress = Progress(300, 2, Terminal(), lambda: "")
    one, other = progress.bar("one.bin", 100), progress.bar("other.bin", 200)
    progress.tqdm(one)(total=100, desc="x").update(50)
    other.update(200)
    progress.finish(other, is_good=True)
    lines = list(progress.lines(10.0**9, 80))
    assert len(lines) == 2
    assert lines[0].startswith(" 50% ████████████░░░░░░░░░░░░")
    assert lines[0].endswith("50 B of 100 B    one.bin")
    assert " 83% " in lines[1]
    assert "1/2 files" in lines[1]
    progress.finish(one, is_good=False)  # its bytes do not count
    assert progress.arrived == 200
    assert all(len(line) <= 30 for line in progress.lines(10.0**9 + 1, 30))
    progress.stop()
    with pytest.raises(Stopped):
        progress.bar("late", 1).update()
