"""What each request target names, on the raw path."""

from string import ascii_letters, digits

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.urls import ApiRoute, FileRoute, OtherRoute, Repo, parse

SHA = "0123456789abcdef0123456789abcdef01234567"
TINY, GPT2 = Repo("models", "acme/tiny"), Repo("models", "gpt2")


@pytest.mark.parametrize(
    ("target", "route"),
    [
        ("/acme/tiny/resolve/main/config.json", FileRoute(TINY, "main", "config.json")),
        ("//acme/tiny/resolve/main/config.json", FileRoute(TINY, "main", "config.json")),
        ("/acme/tiny/resolve/main/a/b%20c.txt?download=true", FileRoute(TINY, "main", "a/b c.txt")),
        ("/acme/tiny/resolve/refs%2Fpr%2F1/x", FileRoute(TINY, "refs/pr/1", "x")),
        ("/acme/tiny/resolve/refs/pr/1/x", FileRoute(TINY, "refs/pr/1", "x")),
        ("/acme/tiny/resolve/refs/x", FileRoute(TINY, "refs", "x")),
        ("/gpt2/resolve/main/config.json", FileRoute(Repo("models", "gpt2"), "main", "config.json")),
        ("/datasets/acme/rows/resolve/v1.0/a", FileRoute(Repo("datasets", "acme/rows"), "v1.0", "a")),
        ("/datasets/squad/resolve/main/a", FileRoute(Repo("datasets", "squad"), "main", "a")),
        ("/spaces/acme/app/resolve/main/a", FileRoute(Repo("spaces", "acme/app"), "main", "a")),
        ("/kernels/acme/fast/resolve/main/a", FileRoute(Repo("kernels", "acme/fast"), "main", "a")),
        ("/acme/resolve/resolve/main/a", FileRoute(Repo("models", "acme/resolve"), "main", "a")),
        (f"/api/resolve-cache/models/acme/tiny/{SHA}/a/b?etag=%22x%22", FileRoute(TINY, SHA, "a/b")),
        (f"/api/resolve-cache/datasets/squad/{SHA}/a", FileRoute(Repo("datasets", "squad"), SHA, "a")),
        ("/hf/acme/tiny/resolve/main/a", FileRoute(TINY, "main", "a", "/hf")),
        ("/hf/datasets/acme/rows/resolve/main/a", FileRoute(Repo("datasets", "acme/rows"), "main", "a", "/hf")),
    ],
)
def test_files(target, route):
    assert parse(target) == route


@pytest.mark.parametrize(
    ("target", "kind", "repo", "revision", "prefix"),
    [
        ("/api/models/acme/tiny", "info", TINY, None, ""),
        ("/api/models/acme/tiny/?blobs=true", "info", TINY, None, ""),
        ("/api/models/gpt2", "info", Repo("models", "gpt2"), None, ""),
        ("/api/models/gpt2/revision/main", "revision", Repo("models", "gpt2"), "main", ""),
        ("/api/models/tree/revision/tree/main", "tree", Repo("models", "tree/revision"), "main", ""),
        ("/api/models/acme/settings/tree/main", "tree", Repo("models", "acme/settings"), "main", ""),
        ("/api/models/acme/commit/refs", "refs", Repo("models", "acme/commit"), None, ""),
        ("/api/models/acme/tag", "info", Repo("models", "acme/tag"), None, ""),
        ("/api/datasets/acme/rows/revision/refs%2Fpr%2F1", "revision", Repo("datasets", "acme/rows"), "refs/pr/1", ""),
        ("/api/models/acme/tiny/tree/main/data%2Fen?recursive=True", "tree", TINY, "main", ""),
        ("/api/models/acme/tiny/tree/main", "tree", TINY, "main", ""),
        ("/api/models/acme/tiny/paths-info/main", "paths-info", TINY, "main", ""),
        ("/api/models/acme/tiny/refs?include_prs=1", "refs", TINY, None, ""),
        ("/hf/api/models/acme/tiny/refs", "refs", TINY, None, "/hf"),
    ],
)
def test_questions(target, kind, repo, revision, prefix):
    route = parse(target)
    assert isinstance(route, ApiRoute)
    assert (route.kind, route.repo, route.revision, route.prefix) == (kind, repo, revision, prefix)
    assert prefix + route.target == target  # what is sent on is what arrived, still encoded


@pytest.mark.parametrize(
    ("target", "sent_on", "repo"),
    [
        ("/", "/", None),
        ("/api/models", "/api/models", None),
        ("/api/models/", "/api/models/", None),
        ("/api/models?author=acme", "/api/models?author=acme", None),
        ("/api/whoami-v2", "/api/whoami-v2", None),
        ("/hf/api/whoami-v2", "/api/whoami-v2", None),
        ("/api/models/acme/tiny/commits/main?p=1", "/api/models/acme/tiny/commits/main?p=1", TINY),
        ("/api/models/acme/tiny/auth-check", "/api/models/acme/tiny/auth-check", TINY),
        ("/api/models/gpt2/auth-check", "/api/models/gpt2/auth-check", GPT2),
        ("/api/models/gpt2/auth-check/write", "/api/models/gpt2/auth-check/write", GPT2),
        ("/api/models/gpt2/settings", "/api/models/gpt2/settings", GPT2),
        ("/api/models/gpt2/commit/main", "/api/models/gpt2/commit/main", GPT2),
        ("/api/models/gpt2/branch/a%2Fb", "/api/models/gpt2/branch/a%2Fb", GPT2),
        ("/api/models/acme/commit/commit/main", "/api/models/acme/commit/commit/main", Repo("models", "acme/commit")),
        ("/api/models/acme/tiny/commit/main", "/api/models/acme/tiny/commit/main", TINY),
        ("/api/models/acme/tiny/branch/a%2Fb", "/api/models/acme/tiny/branch/a%2Fb", TINY),
        ("/acme/tiny.git/info/lfs/objects/batch", "/acme/tiny.git/info/lfs/objects/batch", TINY),
        ("/hf/acme/tiny.git/info/lfs/objects/batch", "/acme/tiny.git/info/lfs/objects/batch", TINY),
        ("/datasets/acme/rows.git/info/refs", "/datasets/acme/rows.git/info/refs", Repo("datasets", "acme/rows")),
        ("/buckets/acme/stuff/resolve/a/b", "/buckets/acme/stuff/resolve/a/b", None),
        ("/buckets/resolve/main/a", "/buckets/resolve/main/a", None),
        ("/hf/buckets/acme/stuff/resolve/a", "/buckets/acme/stuff/resolve/a", None),
        ("/acme/tiny/raw/main/a", "/acme/tiny/raw/main/a", TINY),
        ("/docs/hub/index", "/docs/hub/index", None),
        ("/v2/acme/tiny/manifests/latest", "/v2/acme/tiny/manifests/latest", None),
        ("/hf/v2/acme/tiny/manifests/latest", "/v2/acme/tiny/manifests/latest", None),
        ("/hf/acme/tiny/git-upload-pack", "/acme/tiny/git-upload-pack", TINY),
        ("/datasets", "/datasets", None),
        ("/gpt2.git/info/refs", "/gpt2.git/info/refs", Repo("models", "gpt2")),
    ],
)
def test_all_else_is_sent_on_as_it_is(target, sent_on, repo):
    assert parse(target) == OtherRoute(sent_on, repo, target.removesuffix(sent_on))


@pytest.mark.parametrize("path", ["..", "a/../b", "%2e%2e/b", "..%2Fb", ".", "a/%00b", "a%0Ab", "", "a/"])
def test_what_climbs_out_of_a_repository_is_no_file_of_it(path):
    """It would be cached under a repository that it does not belong to."""
    assert isinstance(parse(f"/acme/tiny/resolve/main/{path}"), OtherRoute)
    assert isinstance(parse(f"/api/resolve-cache/models/acme/tiny/{SHA}/{path}"), OtherRoute)
    assert isinstance(parse(f"/../tiny/resolve/main/{path or 'x'}"), OtherRoute)


@pytest.mark.parametrize(
    ("target", "at"),
    [
        ("/api/models/acme/tiny/tree/main", f"/api/models/acme/tiny/tree/{SHA}"),
        ("/api/models/tree/tree/tree/main/a%2Fb?p=1", f"/api/models/tree/tree/tree/{SHA}/a%2Fb?p=1"),
        ("/api/models/acme/tiny/tree/refs%2Fpr%2F1/tree/x", f"/api/models/acme/tiny/tree/{SHA}/tree/x"),
        ("/api/models/acme/tiny/tree/refs/pr/1/x", f"/api/models/acme/tiny/tree/{SHA}/x"),
        ("/hf/api/datasets/squad/paths-info/main", f"/api/datasets/squad/paths-info/{SHA}"),
    ],
)
def test_a_question_about_a_branch_becomes_one_about_its_commit(target, at):
    route = parse(target)
    assert isinstance(route, ApiRoute)
    moved = route.at(SHA)
    assert moved.target == at
    assert (moved.revision, moved.prefix, moved.repo) == (SHA, route.prefix, route.repo)


names = st.text(ascii_letters + digits + "_-.", min_size=1, max_size=20).filter(lambda name: name.strip("."))
repos = st.builds(
    Repo, st.sampled_from(["models", "datasets", "spaces", "kernels"]), st.builds("{}/{}".format, names, names)
)
printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
paths = (
    st.lists(printable, min_size=1, max_size=4)
    .map("/".join)
    .filter(lambda path: all(part not in ("", ".", "..") for part in path.split("/")))
)


@given(repos, printable.filter(lambda r: not {".", ".."} & set(r.split("/")) and r.strip("/") == r), paths)
def test_every_file_is_found_under_its_own_target(repo, revision, path):
    route = FileRoute(repo, revision, path)
    owner = repo.id.partition("/")[0]
    if owner in ("models", "datasets", "spaces", "kernels", "api", "buckets", "oauth", "docs", "login", "settings"):
        return
    assert parse(route.target) == route


@given(st.text(max_size=60))
def test_no_target_is_too_strange(text):
    parse(text)
    parse(f"/api/models/{text}")
    parse(f"/acme/tiny/resolve/{text}")
