"""What a node knows survives restarts, kills and damage, and never grows without bound in memory."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mesh.content import Digest
from proxy import catalog as module
from proxy.catalog import ApiAnswer, BlobName, Catalog, File, Ref
from proxy.hub.metadata import FileMetadata

REPO, COMMIT = "models/acme/tiny", "c" * 40
TOP = Path(__file__).parents[2]


def metadata(number: int = 0) -> FileMetadata:
    return FileMetadata(f"{number:064x}", number, "text/plain")


def fill(catalog: Catalog) -> None:
    catalog.set_file(REPO, COMMIT, "a/b\n.bin", File(metadata(7), open_at=5.0))
    catalog.set_file(REPO, COMMIT, "gone", File(None))
    catalog.set_file(REPO + "2", COMMIT, "other", File(metadata(8)))
    catalog.set_ref(REPO, "main", Ref(COMMIT, 10.0))
    catalog.set_answer(REPO, "*", "q", ApiAnswer(200, {"Link": "<x>"}, b"[]" * 50_000, 10.0, COMMIT))
    catalog.set_pins({REPO: ["sha256:1"]})


def check(catalog: Catalog) -> None:
    assert catalog.file(REPO, COMMIT, "a/b\n.bin") == File(metadata(7), open_at=5.0)
    assert catalog.file(REPO, COMMIT, "gone") == File(None)
    assert catalog.file(REPO, COMMIT, "never") is None
    assert catalog.ref(REPO, "main") == Ref(COMMIT, 10.0)
    answer = catalog.answer(REPO, "*", "q")
    assert answer is not None
    assert (answer.headers, len(answer.body), answer.commit) == ({"Link": "<x>"}, 100_000, COMMIT)
    assert catalog.answer(REPO, "someone", "q") is None
    assert catalog.pins() == {REPO: ["sha256:1"]}
    assert catalog.blob_name(Digest("sha256", f"{7:064x}")) == BlobName(REPO, "a/b\n.bin")
    assert list(catalog.files_of(REPO)) == [(COMMIT, "a/b\n.bin", metadata(7))]


async def test_everything_is_there_at_once_and_after_a_restart(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    fill(catalog)
    check(catalog)
    await catalog.close()
    catalog = Catalog(tmp_path / "catalog")
    check(catalog)
    await catalog.close()


async def test_what_was_said_before_a_write_is_void(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    fill(catalog)
    catalog.changed(REPO)
    catalog.set_ref(REPO, "main", Ref("d" * 40, 11.0))  # an answer that was on its way meanwhile
    assert catalog.ref(REPO, "main") is None
    assert catalog.answer(REPO, "*", "q") is None
    assert catalog.file(REPO, COMMIT, "gone") is not None  # commits do not change
    catalog.set_ref(REPO, "main", Ref("d" * 40, time.time() + 1))
    catalog.set_ref(REPO, "main", Ref(COMMIT, time.time()))  # older than what is known
    assert catalog.ref(REPO, "main").commit == "d" * 40
    await catalog.close()


def test_a_kill_loses_nothing_that_was_told_before(tmp_path):
    program = """
        import asyncio, sys
        from pathlib import Path
        from proxy.catalog import Catalog
        from tests.proxy.test_catalog import fill

        async def main():
            catalog = Catalog(Path(sys.argv[1]))
            fill(catalog)
            while catalog._writing is not None:
                await asyncio.sleep(0.01)
            print("written", flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "catalog")], cwd=TOP, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == b"written\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    async def reopen() -> None:
        catalog = Catalog(tmp_path / "catalog")
        check(catalog)
        await catalog.close()

    asyncio.run(reopen())


@pytest.mark.parametrize("damage", ["garbage", "middle", "empty"])
async def test_a_damaged_file_is_put_aside_and_said_so(tmp_path, caplog, damage):
    catalog = Catalog(tmp_path / "catalog")
    for number in range(2000):
        catalog.set_file(REPO, COMMIT, f"file-{number}", File(metadata(number)))
    await catalog.close()
    file = tmp_path / "catalog" / "cache.db"
    content = bytearray(file.read_bytes())
    if damage == "garbage":
        content = bytearray(os.urandom(len(content)))
    elif damage == "middle":
        content[4096 : len(content) // 2] = os.urandom(len(content) // 2 - 4096)
    else:
        content = bytearray()
    file.write_bytes(content)
    catalog = Catalog(tmp_path / "catalog")
    fill(catalog)
    check(catalog)
    await catalog.close()
    if damage != "empty":  # for SQLite that is a new database
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "begun anew" in caplog.text
        assert (tmp_path / "catalog.damaged" / "cache.db").exists()


async def test_damage_while_running_is_said_once_and_leaves_the_memory(tmp_path, caplog, monkeypatch):
    catalog = Catalog(tmp_path / "catalog")

    def broken(*_: object, **__: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(catalog._disk, "get", broken)
    for number in range(3):
        assert catalog.file(REPO, COMMIT, f"f{number}") is None
    fill(catalog)
    assert catalog.ref(REPO, "main") == Ref(COMMIT, 10.0)
    assert len(caplog.records) == 1
    await catalog.close()


async def test_memory_is_bounded_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MEMORY", 1 << 20)
    catalog = Catalog(tmp_path / "catalog")
    for number in range(40):
        catalog.set_answer(REPO, "*", str(number), ApiAnswer(200, {}, b"x" * 100_000, 10.0 + number))
        await asyncio.sleep(0)
    assert catalog._memory_size <= 1 << 20
    assert len(catalog._memory) <= 10
    for number in range(40):
        answer = catalog.answer(REPO, "*", str(number))
        assert answer is not None
        assert answer.said_at == 10.0 + number
    await catalog.close()
