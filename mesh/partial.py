"""A blob that is still arriving: a sparse file, and a journal of the pieces that are safely in it.

A journal entry is appended after its piece's bytes were written, so a `kill -9` loses at most the pieces under way. A
power cut may lose bytes that the journal lists. So each entry carries the piece's BLAKE3 digest, and after a restart a
piece counts only once its bytes have been read back and match. Of several entries for one piece the last one counts.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from mesh.content import Digest, Pieces, PieceSet
from mesh.descriptors import unusable
from mesh.errors import MeshError, StoreFull, StoreUnusable
from mesh.proof import piece_digest

log = logging.getLogger(__name__)

_MAGIC = b"hubmesh1"
_HEADER = struct.Struct("<8sQQ")  # magic, size of the blob, size of a piece
_ENTRY = struct.Struct("<I?32s")  # piece, whether its bytes are trusted without further proof, BLAKE3 digest


class Partial:
    """One partial blob, which any thread may write to at any offset.

    `have` holds the pieces that are on disk and checked. `unchecked` holds the pieces listed in the journal of an
    earlier process: call `recheck` before relying on them. `trusted` is the part of `have` that came straight from the
    origin, or was checked against a digest that is believed.

    `have`, `unchecked`, `trusted` and `piece_digests` belong to the event loop's thread; `write`, `record`
    and `recheck` may run in any thread.

    Raises OSError when the files cannot be opened.
    """

    def __init__(self, path: Path, digest: Digest, size: int) -> None:
        self.path = path
        self.digest = digest
        self.size = size
        self.pieces = Pieces.of(size)
        self.have = PieceSet(self.pieces.count)
        self.trusted = PieceSet(self.pieces.count)
        self.unchecked = PieceSet(self.pieces.count)
        self.piece_digests: dict[int, bytes] = {}
        self._was_trusted = PieceSet(self.pieces.count)
        self._journal_lock = Lock()
        # The kernel lets one thread at a time write to a file, and the threads that wait for that spin for a while.
        self._write_lock = Lock()
        self._journal_size = 0
        self._is_abandoned = False
        self.fd = _open(path)
        try:
            os.ftruncate(self.fd, size)
            self._journal = self._open_journal()  # the last step that can fail, or the journal would stay open
        except BaseException:
            os.close(self.fd)
            raise

    @property
    def journaled_bytes(self) -> int:
        """Bytes of all pieces on disk, checked or not; 0 once the blob is abandoned."""
        bits = self.have.bits | self.unchecked.bits
        if not bits or self._is_abandoned:
            return 0
        whole = bits.bit_count() * self.pieces.piece_size
        last = self.pieces.count - 1
        return whole - (self.pieces.piece_size * (last + 1) - self.size if bits >> last & 1 else 0)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset`. Raises StoreFull when the disk is full, StoreUnusable for other errors."""
        try:
            while data:
                with self._write_lock:
                    written = os.pwrite(self.fd, data, offset)
                data = data[written:]
                offset += written
        except OSError as error:
            raise self._refused(error) from error

    def record(self, piece: int, digest: bytes, trusted: bool) -> None:
        """Append an entry to the journal for a piece whose bytes are all written; `digest` is their BLAKE3 digest.

        Raises StoreFull or StoreUnusable.
        """
        entry = _ENTRY.pack(piece, trusted, digest)
        with self._journal_lock:
            try:
                if os.write(self._journal, entry) != len(entry):
                    # A full disk can cut an entry short. Left there, it would shift all later entries.
                    os.ftruncate(self._journal, self._journal_size)
                    raise StoreFull(f"the disk is full while writing the journal of {self.digest}")
            except OSError as error:
                raise self._refused(error) from error
            self._journal_size += len(entry)

    def add(self, piece: int, digest: bytes, trusted: bool) -> None:
        """Count a recorded piece as present."""
        self.have.add(piece)
        self.unchecked.discard(piece)
        self.piece_digests[piece] = digest
        if trusted:
            self.trusted.add(piece)

    def recheck(self, piece: int) -> bool:
        """Read a piece back and return whether it matches its digest in the journal. False if it cannot be read."""
        try:
            return self.digest_of(piece) == self.piece_digests.get(piece)
        except StoreUnusable:  # a bad sector: the disk remaps it when the piece is written again
            return False

    def digest_of(self, piece: int) -> bytes:
        """Read a piece back from disk and return its BLAKE3 digest. Raises StoreUnusable."""
        try:
            return piece_digest(self.fd, *self.pieces.span(piece))
        except OSError as error:
            raise StoreUnusable(f"cannot read {self.path}: {error}") from error

    def accept(self, piece: int) -> None:
        """Count a rechecked piece as present."""
        self.add(piece, self.piece_digests[piece], piece in self._was_trusted)

    def forget(self, piece: int) -> None:
        """Forget a piece whose bytes are not what the journal says. Its entry stays: the next start finds out, too."""
        self.have.discard(piece)
        self.trusted.discard(piece)
        self.unchecked.discard(piece)
        self._was_trusted.discard(piece)
        self.piece_digests.pop(piece, None)

    def drop(self, pieces: PieceSet) -> None:
        """Forget pieces whose bytes are wrong though they match the journal, and rewrite the journal without them.

        Raises StoreFull or StoreUnusable when the journal cannot be written.
        """
        for piece in pieces:
            self.forget(piece)
        temporary = self._journal_path.with_suffix(".journal.new")
        entries = [
            _ENTRY.pack(piece, piece in self.trusted or piece in self._was_trusted, digest)
            for piece, digest in sorted(self.piece_digests.items())
        ]
        try:
            with self._journal_lock:
                temporary.write_bytes(self._header() + b"".join(entries))
                journal = os.open(temporary, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                try:
                    temporary.replace(self._journal_path)
                except OSError:
                    os.close(journal)
                    raise
                # Only now: had `replace` failed with this closed, entries would go to whatever file gets its number.
                os.close(self._journal)
                self._journal = journal
                self._journal_size = _HEADER.size + len(entries) * _ENTRY.size
        except OSError as error:
            raise self._refused(error) from error

    def drop_surely(self, pieces: PieceSet) -> None:
        """Like `drop`, but abandon the whole blob if the journal cannot be written: that needs no room on disk."""
        try:
            self.drop(pieces)
        except MeshError as error:
            log.warning("%s: %s; what had arrived of it is dropped", self.digest, error)
            with contextlib.suppress(OSError):  # the next start checks the blob again, and finds it wrong again
                self.abandon()

    def abandon(self) -> None:
        """Unlink the files, for good. Readers that have the blob open may go on reading. Raises OSError."""
        self._is_abandoned = True
        self.remove(self.path)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            os.close(self._journal)
            self.fd = self._journal = -1

    @staticmethod
    def journal_of(path: Path) -> Path:
        return path.with_suffix(".journal")

    @staticmethod
    def remove(path: Path) -> None:
        """Delete a partial blob's files, journal first: bytes without a journal do not count. Raises OSError."""
        Partial.journal_of(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    @staticmethod
    def journaled(path: Path) -> int:
        """Estimate how many bytes the journal beside `path` lists, without opening the blob. 0 without a journal.

        A piece with several entries is counted as often.
        """
        try:
            with Partial.journal_of(path).open("rb") as journal:
                size = os.fstat(journal.fileno()).st_size
                header = journal.read(_HEADER.size)
        except OSError:
            return 0
        if len(header) < _HEADER.size:
            return 0
        blob_size: int
        piece_size: int
        magic, blob_size, piece_size = _HEADER.unpack(header)
        if magic != _MAGIC:
            return 0
        return min(blob_size, (size - _HEADER.size) // _ENTRY.size * piece_size)

    # --- internals

    @property
    def _journal_path(self) -> Path:
        return self.journal_of(self.path)

    def _header(self) -> bytes:
        return _HEADER.pack(_MAGIC, self.size, self.pieces.piece_size)

    def _open_journal(self) -> int:
        header = self._header()
        with contextlib.suppress(FileNotFoundError):
            data = self._journal_path.read_bytes()
            if data[: _HEADER.size] == header:
                # Cut off an entry that a process died in the middle of writing: it would shift all later entries.
                whole = (len(data) - _HEADER.size) // _ENTRY.size * _ENTRY.size
                for piece, trusted, digest in _ENTRY.iter_unpack(data[_HEADER.size : _HEADER.size + whole]):
                    if piece < self.pieces.count:
                        self.unchecked.add(piece)
                        self.piece_digests[piece] = digest
                        (self._was_trusted.add if trusted else self._was_trusted.discard)(piece)
                self._journal_size = _HEADER.size + whole
                os.truncate(self._journal_path, self._journal_size)
                return os.open(self._journal_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        fd = os.open(self._journal_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            if os.write(fd, header) != len(header):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BaseException:
            os.close(fd)
            raise
        self._journal_size = len(header)
        return fd

    def _refused(self, error: OSError) -> StoreFull | StoreUnusable:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFull(f"the disk is full while writing {self.digest}")
        return unusable(f"cannot write {self.path}", error)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except PermissionError:  # made read-only by a process that died before it renamed the file
        path.chmod(0o600)
        return os.open(path, flags, 0o600)


def write_manifest(path: Path, size: int, digests: Sequence[bytes]) -> None:
    """Write the BLAKE3 digests of all pieces of a proven blob, for `read_manifest`. Raises OSError."""
    fresh = path.with_suffix(".pieces.new")
    entries = (_ENTRY.pack(piece, True, digest) for piece, digest in enumerate(digests))
    fresh.write_bytes(_HEADER.pack(_MAGIC, size, Pieces.of(size).piece_size) + b"".join(entries))
    fresh.rename(path)


def read_manifest(path: Path, size: int) -> dict[int, bytes]:
    """Piece → BLAKE3 digest of a complete blob, from the manifest kept beside it; {} when there is none.

    Each digest was checked when its piece arrived, and the whole blob has been proven since. Raises OSError.
    """
    pieces = Pieces.of(size)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    if data[: _HEADER.size] != _HEADER.pack(_MAGIC, size, pieces.piece_size):
        return {}
    whole = (len(data) - _HEADER.size) // _ENTRY.size * _ENTRY.size
    entries = _ENTRY.iter_unpack(data[_HEADER.size : _HEADER.size + whole])
    # A digest of zeros is a part of the manifest that was never flushed to disk.
    return {piece: digest for piece, _, digest in entries if piece < pieces.count and any(digest)}
