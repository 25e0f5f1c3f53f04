"""`hubmesh pull`: download through the node on this machine with progress, and verify each file."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from mesh.content import Digest
from proxy.commands.local import LocalNode, find, node_flags
from proxy.commands.progress import Progress
from proxy.commands.token import token_option
from proxy.commands.uri import HfUri
from proxy.units import format_size

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile, RepoFolder

_WORKERS = 8  # files at a time, as in huggingface_hub
_READ = 1 << 20  # bytes


class NotFound(click.ClickException):
    """There is no such repository, revision or file."""

    exit_code = 3


class NotAllowed(click.ClickException):
    """The Hub refuses this token."""

    exit_code = 4


@click.command()
@click.argument("uri", metavar="hf://[models/|datasets/|spaces/]OWNER/NAME[@REVISION][/PATH]")
@click.option(
    "-O", "--output", "dest", type=click.Path(path_type=Path), help="Destination. Without it: the Hugging Face cache."
)
@click.option("-r", "--recursive", is_flag=True, help="PATH is a folder: download everything below it.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only files that match GLOB; repeat for several.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Skip files that match GLOB; repeat for several.")
@token_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@node_flags
def pull(
    uri: str,
    dest: Path | None,
    recursive: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    token: str | None,
    quiet: bool,
    **flags: Any,
) -> None:
    """Download from the Hub through the local node.

    The URI names a repository, a folder (with -r) or a file. With -O, a file is written to that name (or into that
    directory), and the files of a repository or folder keep their structure below it. Without -O, files go to the
    cache that all Hugging Face clients use. Files that are already there and correct are not downloaded again. Every
    file is checked against the digest from the Hub.

    Exit code: 0 all files are there and correct, 1 something failed, 2 bad command line, 3 no such repository, revision
    or file, 4 access denied, 130 interrupted.
    """
    try:
        what = HfUri.parse(uri)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    node = find(flags)
    before = node.status().metrics
    # The node is on this machine: no proxy. The client reads these variables when it is imported.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), urlsplit(node.url).hostname]))
    from huggingface_hub import HfApi

    api = HfApi(endpoint=node.url, token=token, library_name="hubmesh-pull")
    began = time.monotonic()
    try:
        commit, files = _list(api, what, is_folder=recursive)
        jobs = [Job(what, commit, file) for file in _chosen(files, include, exclude)]
        if not jobs:
            raise NotFound(f"no file in {uri} matches")
        where = _place(what, dest, is_folder=recursive or not what.path)
        size = sum(job.file.size for job in jobs)
        progress = Progress(size, len(jobs), sys.stderr, lambda: _sources(node, before))
        if quiet or not sys.stderr.isatty():
            _run(api, jobs, where, progress, node.url)
        else:
            with progress:
                _run(api, jobs, where, progress, node.url)
    except click.ClickException:
        raise
    except Exception as error:  # including those of the HTTP library that the client uses
        raise _explain(error, what) from error
    if not quiet:
        seconds = time.monotonic() - began
        speed = f"{format_size(size)} in {seconds:.1f} s ({format_size(size / max(seconds, 0.001))}/s)"
        click.echo(f"files: {len(jobs)}, {speed}, all digests correct; {_sources(node, before)}", err=True)
        click.echo(str(where))


@dataclass(frozen=True, slots=True)
class Job:
    """One file to download."""

    what: HfUri
    commit: str
    file: RepoFile

    @property
    def digest(self) -> Digest:
        lfs = self.file.lfs
        return Digest("sha256", lfs.sha256) if lfs is not None else Digest("git-sha1", self.file.blob_id)


@dataclass(slots=True)
class Place:
    """The destination of the files."""

    dest: Path | None  # None: the cache of the Hugging Face clients
    staging: Path | None = None  # next to `dest`, so that a file is put in place by a rename
    is_file: bool = False  # `dest` is the name of the one file
    below: str = ""  # the folder of the repository that `dest` stands for
    got: dict[str, Path] = field(default_factory=dict)  # downloaded files by path in the repository

    def of(self, job: Job) -> Path | None:
        """The final path of a file; None if the client chooses it."""
        if self.dest is None or self.is_file:
            return self.dest
        return self.dest / job.file.path.removeprefix(self.below).lstrip("/")

    def __str__(self) -> str:
        if self.dest is not None:
            return str(self.dest)
        path, file = next(iter(self.got.items()))
        # For several files, the folder of their snapshot: one level up for each part of the path.
        return str(file if len(self.got) == 1 else file.parents[path.count("/")])


def _list(api: HfApi, what: HfUri, *, is_folder: bool) -> tuple[str, list[RepoFile]]:
    """Return the commit and the requested files.

    Raises click.ClickException and the errors of huggingface_hub.
    """
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    commit = api.repo_info(what.id, repo_type=what.repo_type, revision=what.revision, timeout=30).sha
    if not commit:
        raise click.ClickException(f"the Hub does not say which commit {what.repo} is at")
    if what.path and not is_folder:
        if (entry := _entry(api, what, commit)) is None:
            raise NotFound(f"there is no {what.path} in {what.repo}")
        if not isinstance(entry, RepoFile):
            raise click.UsageError(f"{what.path} is a folder: add -r to download everything below it")
        return commit, [entry]
    tree = api.list_repo_tree(what.id, what.path or None, recursive=True, revision=commit, repo_type=what.repo_type)
    try:
        return commit, [entry for entry in tree if isinstance(entry, RepoFile)]
    except EntryNotFoundError:  # no such folder
        if what.path and isinstance(_entry(api, what, commit), RepoFile):
            raise click.UsageError(f"{what.path} is a file: leave out -r to download it") from None
        raise


def _entry(api: HfApi, what: HfUri, commit: str) -> RepoFile | RepoFolder | None:
    found = api.get_paths_info(what.id, [what.path], revision=commit, repo_type=what.repo_type)
    return found[0] if found else None


def _chosen(files: list[RepoFile], include: tuple[str, ...], exclude: tuple[str, ...]) -> Iterator[RepoFile]:
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # exported by its __init__

    for file in filter_repo_objects(
        files, allow_patterns=list(include) or None, ignore_patterns=list(exclude) or None, key=lambda file: file.path
    ):
        # A path from the Hub must not lead out of the directory.
        if file.path.startswith("/") or {"..", ""} & set(file.path.split("/")):
            raise click.ClickException(
                f"the repository has a file called {file.path!r}, which cannot be written safely"
            )
        yield file


def _place(what: HfUri, dest: Path | None, *, is_folder: bool) -> Place:
    if dest is None:
        return Place(None)
    if is_folder:
        if dest.exists() and not dest.is_dir():
            raise click.UsageError(f"{dest} is a file: give a directory with -O, for several files")
        return Place(dest, dest / ".hubmesh-pull", below=what.path)
    name = what.path.rpartition("/")[2]
    if dest.is_dir() or str(dest).endswith("/"):
        dest = dest / name
    return Place(dest, dest.parent / f".{dest.name}.hubmesh-pull", is_file=True)


def _run(api: HfApi, jobs: list[Job], where: Place, progress: Progress, endpoint: str) -> None:
    with ThreadPoolExecutor(_WORKERS) as pool:
        running = [pool.submit(_bring, api, job, where, progress, endpoint) for job in jobs]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
            failed = [error for future in running if future.done() and (error := future.exception()) is not None]
            if failed:
                raise failed[0]
        finally:
            progress.stop()
            pool.shutdown(cancel_futures=True)
    if where.staging is not None:
        shutil.rmtree(where.staging, ignore_errors=True)


def _bring(api: HfApi, job: Job, where: Place, progress: Progress, endpoint: str) -> None:
    """Download one file, verify it and put it in place."""
    from huggingface_hub import hf_hub_download

    final = where.of(job)
    bar = progress.bar(job.file.path, job.file.size)
    is_good = False
    try:
        if final is not None and final.is_file() and _is(final, job):
            is_good = True
            return
        for is_again in (False, True):
            got = hf_hub_download(
                job.what.id,
                job.file.path,
                repo_type=job.what.repo_type,
                revision=job.commit,
                local_dir=where.staging,
                endpoint=endpoint,
                token=api.token,
                library_name=api.library_name,
                tqdm_class=progress.tqdm(bar),
                # A file that an earlier client left in the cache was never verified and may be wrong.
                force_download=is_again,
            )
            if _is(Path(got), job):
                break
            bar.update(-bar.n)
        else:
            raise click.ClickException(
                f"{job.file.path}: the downloaded bytes do not match {job.digest}, twice in a row"
            )
        if final is not None:
            final.parent.mkdir(parents=True, exist_ok=True)
            Path(got).replace(final)
        where.got[job.file.path] = Path(got)
        is_good = True
    finally:
        progress.finish(bar, is_good=is_good)


def _is(path: Path, job: Job) -> bool:
    """Whether the file at `path` has the size and digest that the Hub states."""
    if path.stat().st_size != job.file.size:
        return False
    hasher = job.digest.hasher(job.file.size)
    with path.open("rb") as file:
        while data := file.read(_READ):
            hasher.update(data)
    return hasher.hexdigest() == job.digest.hex


def _sources(node: LocalNode, before: Any) -> str:
    """Describe what this node has received since `before`, its earlier metrics."""
    try:
        now = node.status().metrics
    except click.ClickException:
        return ""
    origin, peers = (
        now.get(name, 0) - before.get(name, 0)
        for name in ("hubmesh_origin_received_bytes_total", "hubmesh_peer_received_bytes_total")
    )
    return f"{format_size(max(0, origin))} from the Hub, {format_size(max(0, peers))} from peers"


def _explain(error: Exception, what: HfUri) -> click.ClickException:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return NotAllowed(
            f"{what.repo} is gated: request access on its page at the Hub, then give your token with --token"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(f"{what.repo} has no revision {what.revision}")
    if isinstance(error, errors.LocalEntryNotFoundError):  # raised when no server could be reached
        return click.ClickException(f"{what.repo} cannot be downloaded now: {error.__cause__ or error}")
    if isinstance(error, errors.EntryNotFoundError):
        return NotFound(f"there is no {what.path or 'such file'} in {what.repo}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotFound(f"there is no {what.repo}, or it is private and the token may not read it")
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 404:
        return NotFound(f"{what.repo}: not found: {error}")
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return NotAllowed(f"{what.repo}: access denied: {error}")
    if isinstance(error, OSError | ValueError):
        return click.ClickException(str(error) or type(error).__name__)
    return click.ClickException(f"the download broke off; the node's log may say why: {error}")
