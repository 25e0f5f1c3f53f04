"""The commands that query or control a running node, and how they parse their arguments."""

import asyncio
import json
from importlib.resources import files

import pytest

from proxy.admin.view import BlobView, Preheat
from proxy.commands.uri import HfUri
from proxy.hub.errors import HubError


@pytest.fixture
def run_at(run, node):
    """A function that runs a command against the fake node, from a thread: the node needs the loop."""

    async def run_at(*arguments: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(run, *arguments, "--listen", node.listen)

    return run_at


@pytest.mark.parametrize(
    ("text", "repo", "revision", "path"),
    [
        ("hf://acme/tiny", "models/acme/tiny", None, ""),
        ("acme/tiny", "models/acme/tiny", None, ""),
        ("hf://gpt2@main/config.json", "models/gpt2", "main", "config.json"),
        ("hf://models/acme/tiny/a/b.bin", "models/acme/tiny", None, "a/b.bin"),
        ("hf://datasets/acme/rows@v1.0/data/x@y.parquet", "datasets/acme/rows", "v1.0", "data/x@y.parquet"),
        ("hf://spaces/acme/app@refs/pr/7/app.py", "spaces/acme/app", "refs/pr/7", "app.py"),
        ("hf://acme/tiny@feature%2Fx/", "models/acme/tiny", "feature/x", ""),
        ("hf://acme/tiny/odd@name", "models/acme/tiny", None, "odd@name"),
        ("kernels/acme/.hidden", "kernels/acme/.hidden", None, ""),
    ],
)
def test_names_of_files(text, repo, revision, path):
    uri = HfUri.parse(text)
    assert (uri.repo, uri.revision, uri.path) == (repo, revision, path)


@pytest.mark.parametrize(
    "text", ["", "hf://", "hf://datasets", "hf://a b/c", "hf://a/b@", "https://x.y/z", "a/b/../../c", "./b"]
)
def test_what_names_no_file(text):
    with pytest.raises(ValueError, match="is not a repository"):
        HfUri.parse(text)


async def test_ls_sums_up_by_repository(run_at):
    code, out, _ = await run_at("ls")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["REPOSITORY", "FILES", "SIZE", "HERE"],
        ["datasets/acme/rows", "1", "5", "kB", "20%", "pinned"],
        ["acme/tiny", "2", "1.02", "kB", "100%"],
    ]
    held = json.loads((await run_at("ls", "--json"))[1])
    assert [(row["repo"], row["have"]) for row in held] == [("datasets/acme/rows", 1000), ("models/acme/tiny", 1020)]


async def test_ls_of_one_repository_names_its_files(run_at):
    _, out, _ = await run_at("ls", "acme/tiny")
    assert [(line.split()[0], line.split()[-2]) for line in out.splitlines()] == [
        ("FILE", "FROM"),
        ("config.json", "?"),
        ("model.safetensors", "100%"),
    ]
    assert (await run_at("ls", "acme/none"))[::2] == (1, "hubmesh: this node holds nothing of acme/none\n")


async def test_what_one_repository_fails_with_does_not_keep_the_others(run_at, node):
    node.error, node.failing = LookupError("this node holds nothing of models/acme/none"), "models/acme/none"
    code, out, err = await run_at("rm", "acme/none", "acme/tiny")
    assert (code, out) == (1, "acme/tiny: 1 B freed\n")
    assert err == "hubmesh: acme/none: this node holds nothing of models/acme/none\n"


async def test_orders_reach_the_node(run_at, node, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_environment\n")
    assert (await run_at("pin", "acme/tiny@v1"))[1] == "acme/tiny: pinned; files protected from eviction: 1\n"
    assert (await run_at("unpin", "acme/tiny"))[0] == 0
    assert (await run_at("rm", "datasets/acme/rows", "acme/tiny"))[1] == "acme/rows: 3 B freed\nacme/tiny: 4 B freed\n"
    assert (await run_at("preheat", "acme/tiny", "--nodes", "all", "--exclude", "*.bin"))[0] == 0
    assert (await run_at("preheat", "acme/tiny@v1", "--nodes", "3", "--token", "hf_flag"))[0] == 0
    assert node.told == [
        ("pin", "models/acme/tiny", "v1"),
        ("unpin", "models/acme/tiny"),
        ("rm", "datasets/acme/rows"),
        ("rm", "models/acme/tiny"),
        ("preheat", Preheat("models/acme/tiny", "main", (), ("*.bin",), None, "hf_environment")),
        ("preheat", Preheat("models/acme/tiny", "v1", (), (), 3, "hf_flag")),
    ]


async def test_what_stays_is_said(run_at, node):
    node.in_use = 2
    code, out, _ = await run_at("rm", "acme/tiny")
    assert (code, out) == (
        1,
        "acme/tiny: 1 B freed; files kept because they are being read or downloaded: 2. Try again later\n",
    )
    dashboard = files("proxy.admin").joinpath("static/dashboard.js").read_text()
    for reason in ("because they are being read or downloaded: ", "because a pinned repository contains them: "):
        assert f"; files kept {reason}" in dashboard, "it says the same in other words"


async def test_ls_promises_nothing_of_what_has_no_known_size(run_at, node):
    node.held = [BlobView("sha256:" + "a" * 64, 0, 1000, "models/acme/tiny", "model.safetensors")]
    for arguments in (["ls"], ["ls", "acme/tiny"]):
        _, out, _ = await run_at(*arguments)
        assert "part" in out
        assert "%" not in out


async def test_what_the_node_says_is_passed_on(run_at, node):
    node.error = LookupError("this node holds nothing of models/acme/tiny")
    assert await run_at("pin", "acme/tiny") == (1, "", "hubmesh: this node holds nothing of models/acme/tiny\n")


async def test_what_is_not_there_is_called_that_and_not_by_the_words_of_the_hub(run_at, node):
    node.error = HubError(401, code="RepoNotFound", message="Invalid username or password.")
    code, _, err = await run_at("preheat", "acme/none")
    said = "there is no models/acme/none, or it is private and the token may not read it"
    assert (code, err) == (1, f"hubmesh: acme/none: {said}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["preheat", "a/b", "--nodes", "few"],
        ["preheat", "a/b", "--nodes", "0"],
        ["preheat", "a/b", "--nodes", "9" * 5000],
        ["preheat", "a/b", "--token", "hf_secret\nX: y"],
        ["preheat", "a/b", "--token", "hf_secret→"],
        ["pull", "a/b", "--token", "hf_secret\nX: y"],
        ["pin", "a/b/c"],
    ],
)
async def test_bad_orders_are_refused_before_anything_is_asked(run_at, node, arguments):
    code, out, err = await run_at(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert len(err) < 200
    assert "secret" not in err
    assert node.told == []
