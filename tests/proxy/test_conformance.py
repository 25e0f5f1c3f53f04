"""Each route of the Hub, through a node and straight to the stand-in Hub: clients must not see a difference.

The intended differences are few: what leads to Xet is taken out, URLs at the Hub lead to the node, a bare 401 gets the
code that clients infer only over https, the answer to a file's HEAD is final at once, and an unknown token counts as
none for what everybody may read.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest

from tests.http import Answer, ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess

HEADER = b'{"t": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}'
TENSORS = len(HEADER).to_bytes(8, "little") + HEADER + b"abcd"
BIG = random.Random(11).randbytes(3 << 20)
FORM = "application/x-www-form-urlencoded"
REPOS = ("acme/open", "acme/private", "acme/gated", "acme/old", "acme/disabled", "acme/nowhere")
ASKERS = {"nobody": "", "reader": "hf_alice", "stranger": "hf_bob", "garbage": "hf_garbage"}
# Header fields that clients read in answers about repositories.
READ = (
    *("X-Repo-Commit", "X-Error-Code", "X-Error-Message", "X-Total-Count", "Link", "Location", "Content-Type", "ETag"),
    *("WWW-Authenticate", "X-Linked-Size", "X-Linked-Etag", "X-Xet-Hash", "X-Xet-Cas-Url", "X-Xet-Access-Token"),
)

# Paths of the routes whose answers a node keeps.
KEPT = re.compile(r"/resolve/|/api/(models|datasets)/[^/]+/[^/?]+(\Z|\?|/(revision|refs|tree|paths-info)\b)")


def fill(hub: HubProcess) -> None:
    hub.folder.add_token("hf_alice", "alice")
    hub.folder.add_token("hf_bob", "bob")
    for repo, settings in (
        ("acme/open", {}),
        ("acme/private", {"private": True}),
        ("acme/gated", {"gated": True}),
        ("acme/disabled", {"disabled": True}),
    ):
        hub.folder.create(repo, readers=["alice"], **settings)
        files = {
            "config.json": b"{}",
            "w.safetensors": BIG,
            "model.safetensors": TENSORS,
            "data/en/a b.txt": b"a",
            "README.md": b"# x\n",
        }
        hub.folder.commit(repo, files)
        hub.folder.commit(repo, {"config.json": b'{"pr": 1}'}, ref="pr/1")
        hub.folder.commit(repo, {"config.json": b'{"v": 1}'}, ref="tags/v1.0")
    hub.folder.create("acme/old", moved_to="acme/open")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    with HubProcess(tmp_path_factory.mktemp("hub") / "hub") as process:
        fill(process)
        yield process


@pytest.fixture(scope="module")
def node(hub: HubProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node") / "node", hub.url) as process:
        yield process


def followed(url: str, method: str, token: str, body: bytes | None, headers: dict[str, str]) -> Answer:
    """Return the answer after following redirects within the Hub, as clients do."""
    answer = ask(url, method, token=token, body=body, **headers)
    for _ in range(3):
        where = answer["Location"] or ""
        if answer.status not in (302, 307) or not where.startswith("/"):
            break
        url = urljoin(url, where)
        answer = ask(url, method, token=token, body=body, **headers)
    return answer


def seen(answer: Answer, base: str) -> dict[str, object]:
    """Return what a client sees of an answer, without the intended differences."""
    fields = {name: answer[name] for name in READ if answer[name] is not None}
    if "Link" in fields:
        links = [part for part in (fields["Link"] or "").split(", ") if "xet" not in part]
        fields["Link"] = ", ".join(links).replace(base, "")
    if answer.status == 401 and answer["X-Error-Message"] != "Invalid credentials in Authorization header":
        fields.setdefault("X-Error-Code", "RepoNotFound")
    fields.pop("X-Xet-Hash", None)
    fields["Content-Type"] = (fields.get("Content-Type") or "").partition(";")[0]
    document: object = answer.body.replace(base.encode(), b"")
    if "json" in (answer["Content-Type"] or ""):
        document = json.loads(re.sub(rb',? *"xetHash": ?"[0-9a-f]*"', b"", answer.body) or b"null")
    return {"status": answer.status, "body": document, **{k: v for k, v in fields.items() if v}}


ABOUT = [
    ("GET", "/api/models/{repo}", None),
    ("GET", "/api/models/{repo}?blobs=true&securityStatus=true", None),
    ("GET", "/api/models/{repo}?expand=gated&expand=tags", None),
    ("GET", "/api/models/{repo}/revision/main", None),
    ("GET", "/api/models/{repo}/revision/v1.0?blobs=True", None),
    ("GET", "/api/models/{repo}/revision/refs%2Fpr%2F1", None),
    ("GET", "/api/models/{repo}/revision/nope", None),
    ("GET", "/api/models/{repo}/refs", None),
    ("GET", "/api/models/{repo}/refs?include_prs=1", None),
    ("GET", "/api/models/{repo}/tree/main", None),
    ("GET", "/api/models/{repo}/tree/main?recursive=true&expand=false", None),
    ("GET", "/api/models/{repo}/tree/main?recursive=True&expand=True", None),
    ("GET", "/api/models/{repo}/tree/refs%2Fpr%2F1/data%2Fen?recursive=false", None),
    ("GET", "/api/models/{repo}/tree/main/nowhere", None),
    ("GET", "/api/models/{repo}/tree/nope", None),
    ("POST", "/api/models/{repo}/paths-info/main", b"paths=config.json&paths=data&paths=nope&expand=False"),
    ("POST", "/api/models/{repo}/paths-info/main", b"paths=w.safetensors&expand=true"),
    ("GET", "/api/models/{repo}/commits/main", None),
    ("GET", "/api/models/{repo}/commits/nope", None),
    ("GET", "/api/models/{repo}/auth-check", None),
    ("GET", "/api/models/{repo}/events", None),
    ("GET", "/api/datasets/{repo}", None),
    ("GET", "/api/models?author=acme", None),
    ("GET", "/api/models?search=open&limit=1", None),
    ("GET", "/api/models?author=acme&limit=2", None),
    ("GET", "/api/whoami-v2", None),
    ("GET", "/{repo}/resolve/main/config.json", None),
    ("GET", "/{repo}/resolve/v1.0/config.json", None),
    ("GET", "/{repo}/resolve/refs%2Fpr%2F1/config.json", None),
    ("GET", "/{repo}/resolve/main/data/en/a%20b.txt", None),
    ("GET", "/{repo}/resolve/main/nowhere.txt", None),
    ("GET", "/{repo}/resolve/nope/config.json", None),
    ("GET", "/some/page", None),
]


@pytest.mark.parametrize("asker", ASKERS)
@pytest.mark.parametrize("repo", REPOS)
def test_a_repository_looks_the_same_through_the_node(
    hub: HubProcess, node: NodeProcess, repo: str, asker: str
) -> None:
    """Each request is made twice, so that cached answers are compared, too."""
    token = ASKERS[asker]
    for method, target, body in ABOUT:
        headers = {"Content_Type": FORM} if body else {}
        path = target.format(repo=repo)
        wanted = followed(hub.url + path, method, token, body, headers)
        if asker == "garbage" and KEPT.search(path):
            as_nobody = followed(hub.url + path, method, "", body, headers)
            wanted = as_nobody if as_nobody.status not in (401, 403) else wanted
        for method_now in (method, method, "HEAD") if method == "GET" else (method, method):
            found = followed(node.url + path, method_now, token, body, headers)
            expected, got = seen(wanted, hub.url), seen(found, node.url)
            if method_now == "HEAD":
                expected["body"] = got["body"] = None
            assert got == expected, (asker, method_now, path)


@pytest.mark.parametrize("asker", ASKERS)
@pytest.mark.parametrize("repo", REPOS)
def test_a_files_metadata_is_what_a_client_would_have_found_out(
    hub: HubProcess, node: NodeProcess, repo: str, asker: str
) -> None:
    for path in ("w.safetensors", "config.json"):
        target = f"/{repo}/resolve/main/{path}"
        direct = followed(hub.url + target, "HEAD", ASKERS[asker], None, {"Accept_Encoding": "identity"})
        found = ask(node.url + target, "HEAD", token=ASKERS[asker], Accept_Encoding="identity")
        assert found["Location"] is None
        if direct.status >= 400:
            assert found.status == direct.status
            assert found["X-Error-Message"] == direct["X-Error-Message"]
            continue
        size = direct["X-Linked-Size"] or direct["Content-Length"]
        etag = direct["X-Linked-Etag"] or direct["ETag"]
        assert (found.status, found["X-Repo-Commit"]) == (200, direct["X-Repo-Commit"])
        assert (found["X-Linked-Etag"] or found["ETag"], found["Content-Length"]) == (etag, size)
        assert found["X-Linked-Etag"] == direct["X-Linked-Etag"]
        whole = ask(node.url + target, token=ASKERS[asker])
        assert (whole.status, whole["ETag"], len(whole.body)) == (200, etag, int(size or 0))


# What else huggingface_hub's HfApi requests, and other clients. Never cached, never changed.
_PASSED = """
    GET /api/models-tags-by-type /api/datasets-tags-by-type /api/spaces/hardware /api/spaces/templates
    GET /api/spaces/semantic-search?q=cats&agents=1 /api/spaces/zero-gpu/quota /api/models/acme/open/likers
    GET /api/models/acme/open/discussions?p=0&type=discussion /api/models/acme/open/discussions/1?diff=1
    GET /api/models/acme/open/lfs-files?limit=1
    GET /api/models/acme/open/safetensors-metadata/model.safetensors.index.json
    GET /api/models/acme/open/user-access-request/pending /api/models/acme/open/auth-check/write
    GET /api/models/acme/open/commits/main?expand[]=x /api/models/acme/open/xet-write-token/main?create_pr=1
    GET /api/spaces/a/b/runtime /api/spaces/a/b/logs/build /api/spaces/a/b/logs/run /api/spaces/a/b/secrets
    GET /api/spaces/a/b/variables /api/spaces/a/b/events /api/collections?owner=acme /api/collections/acme/x-123
    GET /api/daily_papers /api/papers/1.2 /api/users/alice/overview /api/users/alice/followers
    GET /api/users/alice/following /api/users/alice/likes?limit=3 /api/organizations/acme/overview
    GET /api/organizations/acme/members /api/organizations/acme/followers
    GET /api/organizations/acme/settings/repositories /api/settings/webhooks /api/settings/repositories
    GET /api/papers/search?q=a%20b /api/jobs/acme /api/jobs/acme/1 /api/jobs/acme/1/logs /api/jobs/hardware
    GET /api/scheduled-jobs/acme /api/buckets/acme/b /api/buckets/acme/b/tree/x%2Fy?recursive=true
    GET /api/buckets/acme/b/xet-read-token /buckets/acme/b/resolve/x%2Fy /api/agent-harnesses
    GET /acme/open/blob/main/config.json /acme/open/raw/main/config.json /papers/1.2.md
    GET /acme/open.git/info/refs?service=git-upload-pack /v2/acme/open/manifests/latest /login
    GET /api/datasets/acme/rows/leaderboard /api/datasets/acme/rows/croissant /api/scheduled-jobs/acme/1
    POST /api/models/acme/open/discussions /api/models/acme/open/discussions/1/comment
    POST /api/models/acme/open/discussions/1/status /api/models/acme/open/user-access-request/handle
    POST /api/models/acme/open/user-access-request/grant /api/models/acme/open/duplicate
    POST /api/models/acme/open/lfs-files/batch /api/models/acme/open/lfs-files/duplicate
    POST /api/models/acme/open/super-squash/main /api/models/acme/open/tag/v2 /api/models/acme/open/branch/b%2Fc
    POST /api/models/acme/open/commit/main?create_pr=1 /api/models/acme/open/preupload/main?create_pr=1
    POST /api/spaces/a/b/restart?factory=true /api/spaces/a/b/pause /api/spaces/a/b/sleeptime /api/spaces/a/b/hardware
    POST /api/spaces/a/b/secrets /api/collections /api/collections/acme/x-123/items
    POST /api/collections/acme/x-123/resource-group /api/settings/webhooks /api/settings/webhooks/1
    POST /api/settings/webhooks/1/enable /api/settings/webhooks/1/disable /api/jobs/acme /api/jobs/acme/1/cancel
    POST /api/scheduled-jobs/acme/1/run /api/validate-yaml /api/buckets/acme/b/paths-info /api/buckets/acme/b/batch
    POST /oauth/token /oauth/device /uploads /api/telemetry/x /acme/open.git/git-upload-pack
    POST /acme/open.git/git-receive-pack /api/jobs/acme/1/expose /api/jobs/acme/1/labels /api/jobs/acme/1/duplicate
    POST /api/scheduled-jobs/acme/1/labels /api/scheduled-jobs/acme/1/schedule /api/scheduled-jobs/acme/1/suspend
    POST /api/scheduled-jobs/acme/1/resume
    DELETE /api/models/acme/open/like /api/models/acme/open/branch/b%2Fc /api/models/acme/open/tag/v2
    DELETE /api/spaces/a/b/secrets /api/spaces/a/b/variables /api/spaces/a/b/volumes /api/spaces/a/b/dev-mode
    DELETE /api/buckets/acme/b
    PUT /api/models/acme/open/settings /api/buckets/acme/b/settings
    PATCH /api/collections/acme/x-123 /api/collections/acme/x-123/items/9
    OPTIONS /api/models/acme/open/commit/main
"""
PASSED = [(words[0], target) for words in map(str.split, _PASSED.split("\n")) for target in words[1:]]


def test_whatever_else_is_asked_arrives_and_is_answered_as_it_was(hub: HubProcess, node: NodeProcess) -> None:
    body = b'{"a": "\xc3\xa9"}' * 100
    for method, target in PASSED:
        sent = None if method in ("GET", "OPTIONS") else body
        headers = {"Content_Type": "application/json"} if sent else {}
        headers |= {"X_Echo": "1", "X_Hf_Test": "kept", "User_Agent": "conformance/1; hf_hub/2.4.0", "Cookie": "a=b"}
        wanted = ask(hub.url + target, method, token="hf_alice", body=sent, **headers)
        counts = set()
        for _ in range(2):
            found = ask(node.url + target, method, token="hf_alice", body=sent, **headers)
            assert found.status == wanted.status == 200, target
            expected, got = json.loads(wanted.body), json.loads(found.body)
            counts.add(got.pop("count"))
            expected.pop("count")
            assert got == expected, target
            for name in ("X-Total-Count", "Set-Cookie", "Content-Type", "Content-Length", "RateLimit-Policy", "Vary"):
                if name != "Content-Length" or len(found.body) == len(wanted.body):
                    assert found[name] == wanted[name], (target, name)
        assert len(counts) == 2, f"{target} was answered from memory"


# A program that uses the library and prints everything it learns; one line per call.
_PROGRAM = """
import json, os, pathlib, sys, tempfile
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, hf_hub_download
from huggingface_hub import snapshot_download

api, other, nobody = HfApi(token="hf_alice"), HfApi(token="hf_bob"), HfApi(token=False)
R, folder = "alice/made", pathlib.Path(tempfile.mkdtemp())
(folder / "sub").mkdir()
(folder / "sub/x.txt").write_text("x")
(folder / "w.bin").write_bytes(b"weights" * 1000)

def say(name, call):
    try:
        value = call()
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        value = [type(error).__name__, status, getattr(error, "server_message", None)]
    text = json.dumps(value, default=lambda v: sorted(vars(v).items()) if hasattr(v, "__dict__") else str(v))
    print(name, text.replace(os.environ["HF_ENDPOINT"], "").replace(str(folder), ""))

def read(path, revision=None, by=api, repo=R):
    return pathlib.Path(hf_hub_download(repo, path, revision=revision, token=by.token)).read_bytes().hex()[:80]

def learn(by, repo, repo_type="model"):
    about = dict(repo_type=repo_type)
    calls = {
        "info": lambda: by.repo_info(repo, **about), "blobs": lambda: by.repo_info(repo, files_metadata=True, **about),
        "tree": lambda: list(by.list_repo_tree(repo, recursive=True, expand=True, **about)),
        "folder": lambda: list(by.list_repo_tree(repo, path_in_repo="sub", **about)),
        "files": lambda: by.list_repo_files(repo, **about), "refs": lambda: by.list_repo_refs(repo, **about),
        "prs": lambda: by.list_repo_refs(repo, include_pull_requests=True, **about),
        "commits": lambda: [c.title for c in by.list_repo_commits(repo, **about)],
        "paths": lambda: by.get_paths_info(repo, ["config.json", "w.bin", "nope"], **about),
        "exists": lambda: [by.repo_exists(repo, **about), by.revision_exists(repo, "nope", **about),
                           by.revision_exists(repo, "main", **about)],
        "file": lambda: [by.file_exists(repo, p, **about) for p in ("config.json", "a.txt", "nope")],
        "auth": lambda: by.auth_check(repo, **about),
        "safetensors": lambda: by.get_safetensors_metadata(repo).parameter_count,
    }
    for name, call in calls.items():
        say(f"{name} {repo} {by.token}", call)

say("whoami", lambda: [api.whoami()["name"], other.whoami()["name"]])
say("whoami nobody", lambda: nobody.whoami())
for by in (api, other, nobody):
    for repo in ("acme/open", "acme/private", "acme/gated", "acme/disabled", "acme/nowhere", "acme/old"):
        learn(by, repo)
    say("models", lambda: [m.id for m in by.list_models(author="acme")])
    say("datasets", lambda: [d.id for d in by.list_datasets(author="alice")])
say("create", lambda: api.create_repo(R, private=True).repo_id)
say("again", lambda: api.create_repo(R).repo_id)
say("exist_ok", lambda: api.create_repo(R, exist_ok=True).repo_id)
say("other", lambda: other.repo_exists(R))
say("upload", lambda: api.upload_file(path_or_fileobj=b"one", path_in_repo="a.txt", repo_id=R).oid)
say("read", lambda: read("a.txt"))
say("file there", lambda: [api.file_exists(R, "b.txt"), api.list_repo_files(R)])
say("commit", lambda: api.create_commit(R, [CommitOperationAdd("a.txt", b"two"), CommitOperationAdd("b.txt", b"b")],
                                        commit_message="two").oid)
say("read", lambda: [read("a.txt"), read("b.txt"), api.file_exists(R, "b.txt"), api.list_repo_files(R)])
say("sha", lambda: [api.model_info(R).sha, api.list_repo_commits(R)[0].commit_id])
say("folder", lambda: api.upload_folder(repo_id=R, folder_path=folder).oid)
learn(api, R)
learn(other, R)
say("large", lambda: read("w.bin"))
say("branch", lambda: api.create_branch(R, branch="dev/x"))
say("branch", lambda: api.create_branch(R, branch="dev/x"))
say("on it", lambda: api.upload_file(path_or_fileobj=b"dev", path_in_repo="a.txt", repo_id=R, revision="dev/x").oid)
say("read", lambda: [read("a.txt"), read("a.txt", "dev/x")])
say("tag", lambda: api.create_tag(R, tag="v1"))
say("delete", lambda: api.delete_file("a.txt", R).oid)
say("read", lambda: read("a.txt"))
say("read", lambda: [read("a.txt", "v1"), api.file_exists(R, "a.txt")])
say("mixed", lambda: api.create_commit(R, [CommitOperationDelete("b.txt"), CommitOperationAdd("a.txt", b"3")],
                                       commit_message="m").oid)
say("delete folder", lambda: api.delete_folder("sub", R).oid)
learn(api, R)
say("untag", lambda: [api.delete_tag(R, tag="v1"), api.delete_branch(R, branch="dev/x")])
say("gone", lambda: read("a.txt", "v1"))
say("refs", lambda: api.list_repo_refs(R))
say("squash", lambda: api.super_squash_history(R))
say("commits", lambda: [c.title for c in api.list_repo_commits(R)])
say("public", lambda: api.update_repo_settings(R, private=False))
say("seen", lambda: [other.file_exists(R, "a.txt"), nobody.file_exists(R, "a.txt")])
say("private", lambda: api.update_repo_settings(R, private=True))
say("unseen", lambda: other.file_exists(R, "a.txt"))
say("move", lambda: api.move_repo(R, "alice/moved"))
say("under both names", lambda: [api.model_info(R).id, api.model_info("alice/moved").id, read("a.txt", repo=R)])
say("snapshot", lambda: sorted(os.listdir(snapshot_download("alice/moved", token="hf_alice"))))
say("fs", lambda: sorted(HfFileSystem(token="hf_alice").glob("alice/moved/*")))
say("dataset", lambda: api.create_repo("alice/rows", repo_type="dataset").repo_id)
say("rows", lambda: api.upload_file(
    path_or_fileobj=b"x", path_in_repo="x.csv", repo_id="alice/rows", repo_type="dataset").oid)
learn(nobody, "alice/rows", "dataset")
say("delete repo", lambda: api.delete_repo("alice/moved"))
say("exists", lambda: [api.repo_exists("alice/moved"), api.repo_exists("alice/rows", repo_type="dataset")])
say("read", lambda: read("a.txt", repo="alice/moved"))
say("created again", lambda: api.create_repo("alice/moved").repo_id)
say("files", lambda: api.list_repo_files("alice/moved"))
"""


def test_a_program_learns_and_does_the_same_through_the_node(tmp_path: Path) -> None:
    """huggingface_hub's reading and writing methods on two equal Hubs: one straight, one through a node."""
    said = {}
    for way in ("direct", "node"):
        with HubProcess(tmp_path / way / "hub") as hub:
            fill(hub)
            hub.turn(as_https=way == "direct")
            if way == "direct":
                said[way] = _run(hub.url, hub, tmp_path / way)
            else:
                with NodeProcess(tmp_path / way / "node", hub.url) as node:
                    said[way] = _run(node.url, hub, tmp_path / way)
    assert len(said["direct"]) > 200
    for direct, through in zip(said["direct"], said["node"], strict=True):
        assert through == direct
    failed = [
        line.partition(" ")[0] for line in said["direct"] if '["AttributeError"' in line or '["TypeError"' in line
    ]
    assert not failed, "the program is wrong"


def _run(endpoint: str, hub: HubProcess, home: Path) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUBMESH_"))}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env=kept
        | {"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": endpoint, "NO_PROXY": "*"}
        | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        re.sub(r'xet_hash", "[0-9a-f]*"', 'xet_hash", null', line.replace(hub.url, ""))
        for line in done.stdout.splitlines()
    ]


def test_every_route_of_the_clients_api_is_in_this_file() -> None:
    """Every path that HfApi's source requests from its endpoint has a line above."""
    import huggingface_hub.hf_api as source

    text = Path(source.__file__).read_text()
    asked = set(re.findall(r'f"\{self\.endpoint\}(/api/[^"]*)"', text))
    assert len(asked) > 80
    known = [target.format(repo="acme/open").partition("?")[0] for _, target, _ in ABOUT] + [
        target.partition("?")[0] for _, target in PASSED
    ]
    known += [  # requested by the library itself in the program above
        *("/api/repos/create", "/api/repos/delete", "/api/repos/move", "/api/spaces", "/api/datasets"),
        *(
            f"/api/{kind}/acme/open{tail}"
            for kind in ("datasets", "kernels", "spaces")
            for tail in ("", "/revision/main")
        ),
    ]
    missing = [path for path in sorted(asked) if not any(re.fullmatch(_pattern(path), one) for one in known)]
    assert not missing


def _pattern(path: str) -> str:
    """Return a pattern for a path of the source that matches any values of its variables."""
    path = re.sub(r"\{(repo_type|src_repo_type)\}s|\{api_prefix\}", "models", path)
    return re.sub(r"\{[^}]*\}", ".*", path)
