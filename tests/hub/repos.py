"""Repositories in a folder: what the stand-in Hub serves, and how tests make it.

    root/tokens.json                          {"hf_alice": "alice"}
    root/models/acme/tiny/repo.json           commits, branches, who may read
    root/models/acme/tiny/objects/<oid>       contents by git-sha1 or sha256

The server reads a repo.json again whenever it has changed, so tests can commit while it runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Files with these suffixes are in LFS at the Hub, whatever their size.
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".gguf", ".onnx", ".h5", ".msgpack", ".zip", ".arrow")
LFS_SIZE = 10 << 20


@dataclass
class Entry:
    """One file of a commit. `oid` is git's blob id (of the pointer, for a large file)."""

    oid: str
    size: int
    sha256: str = ""  # of large files
    xet: str = ""  # a made-up Xet hash: 64 hex digits that are no file's sha256
    object: str = ""  # where the bytes are: a name in objects/, or an absolute path


@dataclass
class Commit:
    title: str
    parent: str
    files: dict[str, Entry]


@dataclass
class Repo:
    """Everything about one repository except its bytes."""

    type: str
    id: str
    private: bool = False
    gated: bool = False
    disabled: bool = False
    moved_to: str = ""
    readers: list[str] = field(default_factory=list)  # users who may read it when it is private or gated
    refs: dict[str, str] = field(default_factory=dict)  # "heads/main", "tags/v1", "pr/1", "convert/parquet" → commit
    commits: dict[str, Commit] = field(default_factory=dict)
    xet: bool = True

    def commit_of(self, revision: str) -> str | None:
        for name in (f"heads/{revision}", f"tags/{revision}", revision.removeprefix("refs/")):
            if name in self.refs:
                return self.refs[name]
        full = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return full[0] if len(full) == 1 else None

    @classmethod
    def load(cls, file: Path) -> Repo:
        repo = cls(**json.loads(file.read_text()))
        for sha, commit in repo.commits.items():
            files = {path: Entry(**entry) for path, entry in commit["files"].items()}  # type: ignore[index]
            repo.commits[sha] = Commit(commit["title"], commit["parent"], files)  # type: ignore[index]
        return repo

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "repo.json.new"
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(folder / "repo.json")


class HubFolder:
    """Makes and changes repositories in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def add_token(self, token: str, user: str) -> None:
        file = self.root / "tokens.json"
        tokens = json.loads(file.read_text()) if file.exists() else {}
        tokens[token] = user
        file.write_text(json.dumps(tokens))

    def folder(self, repo_type: str, repo_id: str) -> Path:
        return self.root / repo_type / repo_id

    def load(self, repo_type: str, repo_id: str) -> Repo:
        return Repo.load(self.folder(repo_type, repo_id) / "repo.json")

    def create(self, repo_id: str, repo_type: str = "models", **settings: object) -> Repo:
        repo = Repo(repo_type, repo_id, **settings)  # type: ignore[arg-type]
        repo.save(self.folder(repo_type, repo_id))
        return repo

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path | None],
        *,
        repo_type: str = "models",
        ref: str = "heads/main",
        lfs: bool | None = None,
        title: str = "Change files",
    ) -> str:
        """Add, replace or (None) remove files on a ref, and return the new commit. A Path is served from where it is.

        `lfs` stores all of them, or none, as large files; by default name and size decide.
        """
        folder = self.folder(repo_type, repo_id)
        repo = Repo.load(folder / "repo.json") if (folder / "repo.json").exists() else self.create(repo_id, repo_type)
        parent = repo.refs.get(ref) or repo.refs.get("heads/main", "")
        entries = dict(repo.commits[parent].files) if parent else {}
        for path, content in files.items():
            if content is None:
                del entries[path]
            else:
                entries[path] = self._entry(folder, path, content, lfs)
        state = json.dumps({path: asdict(entry) for path, entry in sorted(entries.items())})
        sha = hashlib.sha1(f"{parent}\n{ref}\n{len(repo.commits)}\n{title}\n{state}".encode()).hexdigest()
        repo.commits[sha] = Commit(title, parent, entries)
        repo.refs[ref] = sha
        repo.save(folder)
        return sha

    def _entry(self, folder: Path, path: str, content: bytes | Path, lfs: bool | None) -> Entry:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if lfs is None:
            lfs = path.endswith(LFS_SUFFIXES) or size > LFS_SIZE
        sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
        if isinstance(content, bytes):
            sha256.update(content)
            git.update(content)
        else:
            with content.open("rb") as file:
                while part := file.read(1 << 20):
                    sha256.update(part)
                    if not lfs:
                        git.update(part)
        digest = sha256.hexdigest()
        if lfs:
            kept = pointer(digest, size)
            git = hashlib.sha1(b"blob %d\0" % len(kept) + kept)
        name = digest if lfs else git.hexdigest()
        if isinstance(content, Path):
            name = str(content.absolute())
        else:
            write_object(folder, name, content)
        xet = hashlib.blake2b(digest.encode(), digest_size=32).hexdigest() if lfs else ""
        return Entry(git.hexdigest(), size, digest if lfs else "", xet, name)


def pointer(sha256: str, size: int) -> bytes:
    """Return what git stores in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def write_object(folder: Path, name: str, content: bytes) -> None:
    objects = folder / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    temporary = objects / f"{name}.new"
    temporary.write_bytes(content)
    temporary.replace(objects / name)
