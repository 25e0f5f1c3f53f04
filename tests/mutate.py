"""Checks that each row of the checklist has a test that fails when its behaviour is removed.

    python -m tests.mutate [ROW...]

For every row (or those named), the code is copied to a temporary folder, the behaviour is broken there, and the row's
tests are run: they must fail, having passed before. Prints the mutations that were not noticed, and then exits with
status 1. Takes some minutes. docs/conformance.md has the same rows in words.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[1]
_COPIED = ("mesh", "proxy", "tests", "pyproject.toml")
_SECONDS = 150
_WORKERS = 2

Edit = tuple[str, str, str]  # file, text that occurs in it once, its replacement


@dataclass(frozen=True)
class Mutation:
    """One way to break one row of the checklist, and the test that must notice."""

    row: int
    edits: tuple[Edit, ...]
    test: str = ""  # as pytest names it; if empty, the row's own test in tests/test_checklist.py

    @property
    def selection(self) -> list[str]:
        return [self.test] if self.test else ["tests/test_checklist.py", "-k", f"row_{self.row:02}_"]


def edit(row: int, file: str, old: str, new: str, test: str = "") -> Mutation:
    return Mutation(row, ((file, old, new),), test)


FILES, API, RESOLVE, PASS = "proxy/files.py", "proxy/api.py", "proxy/resolve.py", "proxy/passthrough.py"
REWRITE, URLS, ERRORS, ORIGIN = "proxy/hub/rewrite.py", "proxy/hub/urls.py", "proxy/hub/errors.py", "proxy/origin.py"
ONWARD, ACCESS, LISTINGS = "proxy/onward.py", "proxy/hub/access.py", "proxy/listings.py"

MUTATIONS = [
    edit(1, FILES, '"X-Repo-Commit": commit,', ""),
    edit(1, FILES, 'headers["X-Linked-Etag"] = ', "_ = "),
    edit(1, FILES, 'headers["Content-Length"] = str(file.size)', "pass"),
    edit(2, FILES, '"Accept-Ranges": "bytes",', '"Accept-Ranges": "bytes", "X-Xet-Hash": metadata.xet_hash,'),
    edit(3, API, "or not rewrite.mentions_xet(body):", "or body:"),
    edit(4, REWRITE, 'path.startswith(("/buckets/", "/api/buckets/"))', "not path"),
    edit(5, ONWARD, '{"host", "expect"}', '{"host", "expect", "authorization"}'),
    edit(5, "proxy/xet_tokens.py", 'self._use == "never" or', "True or"),
    edit(6, FILES, "file.size > PLAIN_HTTP_LIMIT and client.accepts_unknown_size", "file.size < 0"),
    edit(6, FILES, "file.size > PLAIN_HTTP_LIMIT and client.accepts_unknown_size", "file.size > PLAIN_HTTP_LIMIT"),
    edit(6, FILES, "if not is_spoken(self._xet, file.size) or", "if True or"),
    edit(7, "proxy/shown.py", 'headers["Link"] = rewritten', 'headers["Link"] = link'),
    edit(7, "proxy/visible.py", 'request.headers.get("X-Forwarded-Host", request.host)', "request.host"),
    edit(8, REWRITE, "return value if relative is None else prefix + relative", "return value"),
    edit(8, RESOLVE, "target = self._origin.follow(target, where)", "raise OriginUnavailable(where)"),
    edit(9, "proxy/app.py", "else parse(target)", "else parse(request.path_qs.replace('%2F', '/'))"),
    edit(9, URLS, "quote(self.revision, safe='')", "quote(self.revision)"),
    edit(10, URLS, "quote(self.revision, safe='')", "'main'"),
    edit(11, "proxy/answers.py", "return not commit or not answer.commit or commit == answer.commit", "return True"),
    edit(12, RESOLVE, "self._note(route, commit, File(None), token, said_at)", "pass"),
    edit(12, ERRORS, 'headers={"X-Repo-Commit": commit,', "headers={"),
    edit(13, ERRORS, "HubError(504 if error.is_timeout else 502,", 'HubError(404, code="EntryNotFound",'),
    edit(13, ORIGIN, "if answer.status >= 500 or answer.status == 408:", "if answer.status == 408:"),
    edit(14, ERRORS, 'return status == 401 and "X-Error-Code" not in headers and', "return status == 0 and"),
    edit(15, ERRORS, '    "X-Request-Id",\n', ""),
    edit(15, ERRORS, "            status,\n            code=code,", "            401,\n            code=code,"),
    edit(
        16,
        RESOLVE,
        "if not is_open and not self._grants.is_allowed(client.token, repo, time.monotonic()):",
        "if False:",
    ),
    edit(
        16,
        API,
        "repo, scope = str(route.repo), token_key(token) if token else EVERYBODY\n        also",
        "repo, scope = str(route.repo), EVERYBODY\n        also",
    ),
    Mutation(  # each of the two is sufficient
        16,
        ((ACCESS, 'and info.get("gated") is False', ""), (API, ' or document.get("gated") or', " or")),
        "tests/proxy/test_listings.py::test_a_listing_opens_no_gate",
    ),
    Mutation(
        16,
        (
            (LISTINGS, "not kept.open_at or ", ""),
            (LISTINGS, "[path], kept.open_at", "[path], max(each.open_at for each in self._commits.values())"),
        ),
        "tests/proxy/test_listings.py::test_an_open_commit_says_nothing_of_the_next_one",
    ),
    edit(17, RESOLVE, "if commit and (known := ", "if False and (known := "),
    edit(
        17,
        RESOLVE,
        "patience: float = 9.3",
        "patience: float = 60.0",
        "tests/test_checklist.py::test_row_17_a_head_is_answered_in_time_whatever_the_origin_does",
    ),
    Mutation(
        18,
        (
            (FILES, "if source.ready(start) <= start:", "if True:"),
            (FILES, "await source.wait(start)", "await source.wait(max(0, stop - 1))"),
        ),
    ),
    edit(18, "mesh/intake.py", "if self.is_origin and self._fill.has_waiting:", "if False:"),
    edit(19, FILES, 'range_=request.headers.get("Range") if request.method == "GET" else None,', "range_=None,"),
    edit(19, FILES, 'if_range=request.headers.get("If-Range"),', "if_range=None,"),
    edit(19, FILES, 'headers["Content-Range"] = content_range', "pass"),
    edit(20, "mesh/fetcher.py", "_MAX_FAILURES = 6", "_MAX_FAILURES = 0"),
    edit(20, "mesh/transfer.py", "settimeout(connections.stall)", "settimeout(None)"),
    edit(21, "proxy/hub/client.py", "return (self.hub_version or (1, 0)) >= (1, 0)", "return True"),
    edit(21, FILES, "_FIRST_BYTE_SECONDS = 8.5", "_FIRST_BYTE_SECONDS = 60.0"),
    edit(22, ORIGIN, 'sent = {"Accept-Encoding": "identity",', 'sent = {"Accept-Encoding": "gzip",'),
    edit(22, "mesh/transfer.py", '"Accept-Encoding": "identity", "Range"', '"Accept-Encoding": "gzip", "Range"'),
    edit(23, "mesh/proving.py", "house.disproved(self._digest, self._fill.was_read_in_ranges and not doubted)", "pass"),
    edit(23, "mesh/fill.py", "self._fill.was_read_in_ranges = True", "pass"),
    edit(23, "proxy/resumed.py", "if selection.is_rest or client.resumes_in_closed_ranges:", "if False:"),
    edit(23, "proxy/resumed.py", "at = disproof.at if client.hub_version is None else disproof.of_ranges", "at = 0.0"),
    edit(
        23,
        "mesh/proof.py",
        "return self.is_complete and self._hasher.hexdigest() == self._digest.hex",
        "return self.is_complete",
    ),
    Mutation(
        23,
        (
            (
                "mesh/fill.py",
                "limit = min(limit, self.proof.hashed + _AHEAD, partial.size - TAIL)",
                "limit = min(limit, self.proof.hashed + _AHEAD)",
            ),
            ("mesh/fill.py", "if piece != self._completed_by or offset >= self.arrival(piece).end:", "if piece >= 0:"),
        ),
    ),
    edit(24, "mesh/swarm.py", "        if is_whole:\n            self._is_wanted = True\n", ""),
    edit(25, FILES, "is_whole = selection.status == 200 or selection.is_rest", "is_whole = True"),
    edit(26, "mesh/ways.py", "self._location = await self._ask(refused)", "raise LocationRefused(ORIGIN, 'expired')"),
    edit(
        27,
        "proxy/locations.py",
        "location = Location(url, expires_at=",
        'location = Location(url, {"Authorization": f"Bearer {token}"}, expires_at=',
    ),
    edit(
        27,
        "proxy/logs.py",
        "text = secret.pattern.sub(secret.instead, text)",
        "pass",
        "tests/proxy/test_logs.py::test_secrets_are_hidden",
    ),
    edit(28, PASS, "self._catalog.changed(name)", "pass"),
    edit(28, PASS, "body = request.content.iter_any()\n", "body = (await request.read())[::-1]\n"),
    Mutation(
        29,
        (
            ("proxy/caching.py", "return not any(name.lower() in _SHARED_NEVER for name, _ in headers)", "return True"),
            (
                "proxy/caching.py",
                "    if not is_explicit or not (lifetime(answer) > 0 or validators(answer)):\n        return None\n",
                "",
            ),
            ("proxy/caching.py", "    if left > 0:\n", "    if True:\n"),
        ),
    ),
    edit(
        30,
        RESOLVE,
        'stale = self._known(route, self._refs.last(route), client, "stale")\n        if stale',
        "return None\n        if stale",
    ),
    edit(
        30,
        API,
        "stale = await self._catalog.whole(self._stale(route, question, client))\n        if stale is None and",
        "return None\n        if",
    ),
    edit(31, URLS, 'return replace(inner, prefix=f"/{first}")', "return route"),
    edit(31, URLS, 'path = "/" + path.lstrip("/")\n    route', "route"),
    edit(31, "proxy/hub/questions.py", "value.lower() if name in _FLAGS and value in ('True', 'False') else", ""),
    edit(31, "proxy/shown.py", "visible = visible_base(request) + route.prefix", "visible = visible_base(request)"),
    edit(
        32,
        ORIGIN,
        'self.url.replace("://", "://datasets-server.", 1) if viewer else self.url',
        "self.url",
        "tests/proxy/test_passthrough.py::test_the_datasets_viewer_is_asked_under_its_own_name",
    ),
    edit(
        33,
        "mesh/adopt.py",
        "return found if whole.hexdigest() == digest.hex else None",
        "return found",
        "tests/test_hf_cache.py::test_only_what_is_proven_counts",
    ),
    edit(
        34,
        FILES,
        "return self._head(request, file, client, selection, headers)",
        "(await self._open(file, client, 0, file.size, until, is_whole=True)).close()\n"
        "            return self._head(request, file, client, selection, headers)",
    ),
    edit(
        35,
        ONWARD,
        "response = web.StreamResponse(status=answer.status, reason=answer.reason)",
        "response = web.StreamResponse(status=200)",
    ),
]


class Copies:
    """Copies of the code, one per worker, each with one mutation at a time."""

    def __init__(self, folder: Path) -> None:
        self._free: SimpleQueue[Path] = SimpleQueue()
        for number in range(_WORKERS):
            copy = folder / f"copy-{number}"
            copy.mkdir()
            for name in _COPIED:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / name, copy / name)
            self._free.put(copy)

    @contextmanager
    def broken(self, mutation: Mutation) -> Iterator[Path]:
        copy = self._free.get()
        whole = {file: (copy / file).read_text() for file, _, _ in mutation.edits}
        try:
            for file, old, new in mutation.edits:
                text = (copy / file).read_text()
                assert text.count(old) == 1, f"{file} has {old!r} {text.count(old)} times"
                (copy / file).write_text(text.replace(old, new))
            yield copy
        finally:
            for file, text in whole.items():
                (copy / file).write_text(text)
            self._free.put(copy)


def survives(mutation: Mutation, copies: Copies) -> str:
    """Return why a mutation was not noticed; empty if its test failed as it should."""
    with copies.broken(mutation) as copy:
        # -B: two versions of a file written in the same second must not share bytecode.
        command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-m", "", "-p", "no:cacheprovider"]
        command += [*mutation.selection, f"--basetemp={copy / 'left'}"]
        try:
            done = subprocess.run(
                command,
                cwd=copy,
                env=os.environ | {"PYTHONPATH": str(copy)},  # or the unbroken code would be imported
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "its test has no end"
        logs = [file.read_text(errors="replace") for file in (copy / "left").rglob("*.log")]
    if done.returncode == 1 and re.search(r"\b[1-9]\d* (failed|error)", done.stdout):
        if "RuntimeError: the node" in done.stdout:
            return "the node does not start"
        # A node that answers everything with 500 fails every test, which proves nothing about any of them.
        return "the node fails" if any("Traceback" in log for log in logs) else ""
    return "its test passes" if done.returncode == 0 else f"its test does not run\n{done.stdout[-2000:]}{done.stderr}"


def main() -> int:
    rows = {int(row) for row in sys.argv[1:]}
    chosen = [mutation for mutation in MUTATIONS if not rows or mutation.row in rows]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_WORKERS) as pool:
        copies = Copies(Path(folder))
        whole = list({(each.row, each.test): Mutation(each.row, (), each.test) for each in chosen}.values())
        for mutation, why in zip(whole, pool.map(lambda each: survives(each, copies), whole), strict=True):
            if why != "its test passes":
                print(f"row {mutation.row:2}  fails although nothing is broken")
                return 1
        survivors = 0
        for mutation, why in zip(chosen, pool.map(lambda each: survives(each, copies), chosen), strict=True):
            file, _, new = mutation.edits[0]
            print(
                f"row {mutation.row:2}  {'NOT NOTICED: ' + why if why else 'noticed':12}  {file}: {new.strip()[:70]!r}",
                flush=True,
            )
            survivors += bool(why)
    print(f"{len(chosen) - survivors} of {len(chosen)} noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
