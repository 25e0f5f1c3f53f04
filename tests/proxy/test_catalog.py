"""What a node knows survives restarts, kills and damage, and its memory use is bounded."""

import asyncio
import contextlib
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import diskcache
import msgspec
import pytest

import proxy.records as module
from mesh.content import Digest
from mesh.errors import StoreUnusable
from proxy import aside, room
from proxy.catalog import ApiAnswer, BlobName, Catalog, Disproof, File, Ref, XetName, _key
from proxy.hub.metadata import FileMetadata

REPO, COMMIT = "models/acme/tiny", "c" * 40
TOP = Path(__file__).parents[2]


def metadata(number: int = 0) -> FileMetadata:
    return FileMetadata(f"{number:064x}", number, "text/plain")


async def fill(catalog: Catalog) -> None:
    catalog.set_file(REPO, COMMIT, "a/b\n.bin", File(metadata(7), open_at=5.0))
    catalog.set_file(REPO, COMMIT, "gone", File(None))
    catalog.set_file(REPO + "2", COMMIT, "other", File(metadata(8)))
    catalog.set_ref(REPO, "main", Ref(COMMIT, 10.0))
    await catalog.set_answer(REPO, "*", ApiAnswer(200, {"Link": "<x>"}, b"[]" * 50_000, 10.0, COMMIT), "q")


async def check(catalog: Catalog) -> None:
    assert catalog.file(REPO, COMMIT, "a/b\n.bin") == File(metadata(7), open_at=5.0)
    assert catalog.file(REPO, COMMIT, "gone") == File(None)
    assert catalog.file(REPO, COMMIT, "never") is None
    assert catalog.ref(REPO, "main") == Ref(COMMIT, 10.0)
    answer = await catalog.whole(catalog.answer(REPO, "*", "q"))
    assert answer is not None
    assert (answer.headers, len(answer.body), answer.commit) == ({"Link": "<x>"}, 100_000, COMMIT)
    assert catalog.answer(REPO, "someone", "q") is None
    assert catalog.blob_name(Digest("sha256", f"{7:064x}")) == BlobName(REPO, "a/b\n.bin")
    assert list(catalog.files_of(REPO)) == [(COMMIT, "a/b\n.bin", metadata(7))]


async def test_everything_is_there_at_once_and_after_a_restart(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    await fill(catalog)
    await check(catalog)
    await catalog.close()
    catalog = Catalog(tmp_path / "catalog")
    await check(catalog)
    await catalog.close()


async def test_what_was_said_before_a_write_is_void(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    await fill(catalog)
    catalog.changed(REPO)
    catalog.set_ref(REPO, "main", Ref("d" * 40, 11.0))  # an answer that was on its way meanwhile
    assert catalog.ref(REPO, "main") is None
    assert catalog.answer(REPO, "*", "q") is None
    assert catalog.file(REPO, COMMIT, "gone") is not None  # commits do not change
    catalog.set_ref(REPO, "main", Ref("d" * 40, time.time() + 1))
    catalog.set_ref(REPO, "main", Ref(COMMIT, time.time()))  # older than what is known
    assert catalog.ref(REPO, "main").commit == "d" * 40
    await catalog.close()


async def test_what_was_noted_while_the_clock_was_ahead_neither_hides_nor_outlives_what_is_said_later(
    tmp_path, monkeypatch
):
    now = [2e9]
    monkeypatch.setattr("proxy.catalog.time", SimpleNamespace(time=lambda: now[0]))
    catalog = Catalog(tmp_path / "catalog")
    catalog.set_ref(REPO, "main", Ref(COMMIT, now[0]))
    catalog.set_file(REPO, COMMIT, "a", File(metadata(), open_at=now[0]))
    await catalog.set_answer(REPO, "*", ApiAnswer(200, {}, b"old", now[0]), "q")
    catalog.told(REPO, now[0], is_open=True)
    for each in (REPO + "2", REPO + "3"):
        catalog.set_ref(each, "main", Ref(COMMIT, now[0]))
    catalog.changed(REPO + "2")
    catalog.doubt(REPO + "3")
    now[0] = 1e9
    assert catalog.ref(REPO, "main").commit == COMMIT, "without the Hub it is all there is"
    assert catalog.ref(REPO, "main").said_at < now[0] - 1e6, "but not fresh"
    assert catalog.answer(REPO, "*", "q").said_at < now[0] - 1e6
    assert catalog.publicness(REPO).is_open(catalog.file(REPO, COMMIT, "a").open_at, now[0], may_ask=False)
    assert catalog.ref(REPO + "2", "main") is None, "it may be from before the write"
    assert not catalog.doubted_at(REPO + "3") > now[0]
    now[0] += 10
    for each in (REPO, REPO + "2", REPO + "3"):
        catalog.set_ref(each, "main", Ref("d" * 40, now[0]))
        assert catalog.ref(each, "main") == Ref("d" * 40, now[0])
    catalog.refused(REPO, now[0], is_hidden=True)
    catalog.changed(REPO)
    now[0] = 2e9 + 10  # the clock is where it was
    assert catalog.answer(REPO, "*", "q") is None
    assert not catalog.publicness(REPO).is_open(catalog.file(REPO, COMMIT, "a").open_at, now[0], may_ask=False)
    await catalog.close()


async def test_no_file_is_open_again_when_the_clock_gets_where_it_was_before(tmp_path, monkeypatch):
    now = [2e9]
    monkeypatch.setattr("proxy.catalog.time", SimpleNamespace(time=lambda: now[0]))
    catalog, shut = Catalog(tmp_path / "catalog"), []
    catalog.on_shut = shut.append
    catalog.set_file(REPO, COMMIT, "a", File(metadata(), open_at=now[0]))
    catalog.refused(REPO, 1e9 - 100, is_hidden=False)
    catalog.told(REPO, now[0], is_open=True)
    shut.clear()
    now[0] = 1e9
    assert catalog.publicness(REPO).is_shut
    assert shut == [REPO], "its blobs are not shared any longer"
    catalog.refused(REPO, now[0], is_hidden=True)
    now[0] = 2e9 + 10
    assert not catalog.publicness(REPO).is_open(catalog.file(REPO, COMMIT, "a").open_at, now[0], may_ask=False)
    await catalog.close()


def test_a_kill_loses_nothing_that_was_told_before(tmp_path):
    program = """
        import asyncio, sys
        from pathlib import Path
        from proxy.catalog import Catalog
        from tests.proxy.test_catalog import fill

        async def main():
            catalog = Catalog(Path(sys.argv[1]))
            await fill(catalog)
            while catalog._records._writing is not None:
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
        await check(catalog)
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
    await fill(catalog)
    await check(catalog)
    await catalog.close()
    if damage != "empty":  # SQLite takes an empty file for a new database
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "begun anew" in caplog.text
        assert (tmp_path / "catalog.damaged" / "cache.db").exists()


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b"disk_min_file_size", b"disk_min_fil^_size"),
        (b"( rowid INTEGER", b"( r\x9bwid INTEGER"),
        (b"NEW.size - OLD", b"NE\xec.size - OLD"),
        (b"value BLOB)", b"valve BLOB)"),
    ],
    ids=["setting", "key", "trigger", "column"],
)
async def test_a_wrong_byte_that_sqlite_does_not_see_is_damage_too(tmp_path, caplog, good, bad):
    await filled(tmp_path / "catalog")
    file = tmp_path / "catalog" / "cache.db"
    content = file.read_bytes()
    assert good in content
    file.write_bytes(content.replace(good, bad))
    catalog = Catalog(tmp_path / "catalog")
    await fill(catalog)
    await check(catalog)
    await catalog.close()
    assert "begun anew" in caplog.text
    assert bad in (tmp_path / "catalog.damaged" / "cache.db").read_bytes()


async def written(catalog: Catalog) -> None:
    while catalog._records._writing is not None:
        await asyncio.wait([catalog._records._writing])


@pytest.mark.parametrize("written_by", ["this version", "an earlier version"])
async def test_api_answers_displace_only_each_other(tmp_path, monkeypatch, written_by):
    monkeypatch.setattr(room, "_ANSWERS_LIMIT", 1 << 20)
    root, wrong = tmp_path / "catalog", Digest("sha256", "f" * 64)
    catalog = Catalog(root)
    await fill(catalog)
    catalog.disprove(wrong, of_ranges=True)
    disproof = catalog.disproof(wrong)
    if written_by == "an earlier version":
        await catalog.close()
        make_earlier(root)
        catalog = Catalog(root)
    await check(catalog)
    for number in range(30):  # bodies of all sizes; each is written, and makes room, on its own
        for size in (2_000, 20_000, 200_000):
            body = f"{number:04}".encode() * (size // 4)
            await catalog.set_answer(REPO, "*", ApiAnswer(200, {}, body, 10.0), f"{size} {number}")
            catalog.set_xet_name(REPO, f"{size} {number}", XetName(COMMIT, "listed"), is_listed=True)
            await written(catalog)
    await catalog.close()
    assert sum(file.stat().st_size for file in root.rglob("*")) < 3 << 20, "more is kept than may be"
    catalog = Catalog(root)
    for question in ("q", "2000 0", "200000 0"):
        assert catalog.answer(REPO, "*", question) is None
    assert await catalog.whole(catalog.answer(REPO, "*", "200000 29")) is not None
    assert catalog.xet_name(REPO, "2000 0") is None
    assert catalog.xet_name(REPO, "2000 29") is not None
    assert catalog.disproof(wrong) == disproof != Disproof()
    await catalog.set_answer(REPO, "*", ApiAnswer(200, {"Link": "<x>"}, b"[]" * 50_000, 10.0, COMMIT), "q")
    await check(catalog)  # of the names, none is missing
    await catalog.close()


def make_earlier(root: Path) -> None:
    """Change a catalog into what versions left that evicted names and API answers alike, and kept bodies in answers."""
    with diskcache.Cache(str(root), eviction_policy="least-recently-stored") as cache:
        cache._sql("DELETE FROM Cache WHERE key > ? AND key < ?", (_key("body", ""), _key("body", "~")))
        answer = ApiAnswer(200, {"Link": "<x>"}, b"[]" * 50_000, 10.0, COMMIT)
        cache.set(_key("api", REPO, "*", "q"), msgspec.msgpack.encode(answer))
        cache._sql("UPDATE Cache SET store_time = store_time - 1e10 WHERE store_time BETWEEN 1e10 AND 1e11")
        cache._sql("UPDATE Cache SET store_time = 1e11 WHERE store_time > 1e11")


async def test_names_are_limited_too_and_displace_no_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_NAMES_LIMIT", 100_000)
    catalog = Catalog(tmp_path / "catalog")
    await fill(catalog)
    for number in range(300):
        catalog.set_file(REPO, COMMIT, f"file-{number}", File(metadata(number)))
        await written(catalog)
    await catalog.close()
    catalog = Catalog(tmp_path / "catalog")
    assert catalog.file(REPO, COMMIT, "a/b\n.bin") is None
    assert 20 < len(list(catalog.files_of(REPO))) < 300
    assert catalog.file(REPO, COMMIT, "file-299") == File(metadata(299))
    assert await catalog.whole(catalog.answer(REPO, "*", "q")) is not None
    await catalog.close()


async def test_a_body_is_stored_once_however_many_questions_it_answers(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    answer = ApiAnswer(200, {}, bytes(1_000_000), 10.0, COMMIT)
    await catalog.set_answer(REPO, "*", answer, "main", COMMIT)
    await catalog.set_answer(REPO, "someone", answer, "main")
    await catalog.close()
    assert sum(file.stat().st_size for file in (tmp_path / "catalog").rglob("*")) < 1_500_000
    catalog = Catalog(tmp_path / "catalog")
    for scope, question in (("*", "main"), ("*", COMMIT), ("someone", "main")):
        assert await catalog.whole(catalog.answer(REPO, scope, question)) == answer
    await catalog.close()


@pytest.mark.parametrize("damage", ["gone", "cut"])
async def test_an_answer_without_its_body_is_none_until_it_is_told_again(tmp_path, damage):
    for _ in range(2):
        await filled(tmp_path / "catalog")
        [body] = (tmp_path / "catalog").rglob("*.val")
        if damage == "gone":
            body.unlink()
        else:
            body.write_bytes(body.read_bytes()[:50_000])
        catalog = Catalog(tmp_path / "catalog")
        assert catalog.answer(REPO, "*", "q") is not None
        assert await catalog.whole(catalog.answer(REPO, "*", "q")) is None
        await fill(catalog)
        await check(catalog)
        await catalog.close()


async def test_a_damaged_entry_is_not_there_and_the_others_are(tmp_path):
    await filled(tmp_path / "catalog")
    with contextlib.closing(sqlite3.connect(tmp_path / "catalog" / "cache.db", isolation_level=None)) as database:
        database.execute(
            "UPDATE Cache SET mode = 4 WHERE instr(CAST(key AS BLOB), x'00726566')"
        )  # a ref, as if pickled
    catalog = Catalog(tmp_path / "catalog")
    assert catalog.ref(REPO, "main") is None
    await fill(catalog)
    await check(catalog)
    await catalog.close()


async def test_what_was_put_aside_is_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(aside, "MAX_DAMAGED", 2)
    for content in (b"first", b"second"):
        await filled(tmp_path / "catalog")
        (tmp_path / "catalog" / "cache.db").write_bytes(content * 1000)
    await filled(tmp_path / "catalog")
    assert (tmp_path / "catalog.damaged" / "cache.db").read_bytes().startswith(b"first")
    assert (tmp_path / "catalog.damaged-2" / "cache.db").read_bytes().startswith(b"second")
    (tmp_path / "catalog" / "cache.db").write_bytes(b"third" * 1000)
    with pytest.raises(StoreUnusable, match="as 2 were before it"):
        Catalog(tmp_path / "catalog")


@pytest.mark.parametrize("obstacle", ["locked", "unreadable"])
async def test_a_catalog_that_cannot_be_opened_now_is_not_damaged(tmp_path, monkeypatch, obstacle):
    root = tmp_path / "catalog"
    await filled(root)
    with contextlib.ExitStack() as stack:
        if obstacle == "locked":
            stack.enter_context(contextlib.closing(other := sqlite3.connect(root / "cache.db", isolation_level=None)))
            other.execute("BEGIN EXCLUSIVE")
            # diskcache retries for a minute
            clock = SimpleNamespace(time=itertools.count(0, 61).__next__, sleep=lambda _: None)
            stack.enter_context(monkeypatch.context()).setattr("diskcache.core.time", clock)
        else:
            (root / "cache.db").rename(tmp_path / "kept")
            (root / "cache.db").mkdir()
        with pytest.raises(StoreUnusable, match=r"cannot open the catalog in .*(locked|unable to open).* start again"):
            Catalog(root)
        if obstacle == "unreadable":
            (root / "cache.db").rmdir()
            (tmp_path / "kept").rename(root / "cache.db")
    catalog = Catalog(root)
    await check(catalog)
    await catalog.close()
    assert not (tmp_path / "catalog.damaged").exists()


async def test_writing_does_not_try_for_ever(tmp_path, caplog):
    catalog = Catalog(tmp_path / "catalog")
    catalog._records._disk._timeout = 0
    with contextlib.closing(sqlite3.connect(tmp_path / "catalog" / "cache.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await fill(catalog)
        await asyncio.wait_for(catalog.close(), 60)
    assert "cannot be written" in caplog.text


async def filled(root: Path) -> None:
    catalog = Catalog(root)
    await fill(catalog)
    await catalog.close()


@pytest.mark.parametrize("before", ["nothing", "older", "damaged"])
async def test_other_users_of_the_machine_cannot_read_it(tmp_path, before):
    root = tmp_path / "data" / "catalog"
    if before != "nothing":
        root.mkdir(parents=True)
        root.chmod(0o755)
    if before == "damaged":
        (root / "cache.db").write_bytes(b"damaged" * 1000)
    catalog = Catalog(root)
    await fill(catalog)
    await catalog.close()
    assert {path.stat().st_mode & 0o777 for path in root.parent.iterdir()} == {0o700}


async def test_damage_while_running_is_said_once_and_leaves_the_memory(tmp_path, caplog, monkeypatch):
    catalog = Catalog(tmp_path / "catalog")

    def broken(*_: object, **__: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(catalog._records._disk, "get", broken)
    for number in range(3):
        assert catalog.file(REPO, COMMIT, f"f{number}") is None
    await fill(catalog)
    assert catalog.ref(REPO, "main") == Ref(COMMIT, 10.0)
    assert len(caplog.records) == 1
    await catalog.close()


async def test_memory_is_bounded_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MEMORY", 1 << 20)
    catalog = Catalog(tmp_path / "catalog")
    for number in range(40):
        body = f"{number}".encode() * 50_000
        await catalog.set_answer(REPO, "*", ApiAnswer(200, {}, body, 10.0 + number), str(number))
        await asyncio.sleep(0)
    assert catalog._records._memory_size <= 1 << 20
    assert len(catalog._records._memory) <= 40
    for number in range(40):
        answer = await catalog.whole(catalog.answer(REPO, "*", str(number)))
        assert answer is not None
        assert answer.said_at == 10.0 + number
    await catalog.close()


async def test_who_sent_what_is_kept_on_disk_and_what_was_read_is_not_out_of_date(tmp_path):
    digest = Digest("sha256", "a" * 64)
    catalog = Catalog(tmp_path / "catalog")
    before = catalog._records._memory_size
    catalog.set_sources(digest, {"origin": 5})
    assert catalog._records._memory_size == before
    assert catalog.sources(digest) == {"origin": 5}
    catalog.set_sources(digest, {"node-b": 5})
    assert catalog.sources(digest) == {"node-b": 5}
    await catalog.close()
    catalog = Catalog(tmp_path / "catalog")
    assert catalog.sources(digest) == {"node-b": 5}
    await catalog.close()


async def test_a_large_body_displaces_no_others_from_memory_and_is_read_in_a_thread(tmp_path, monkeypatch):
    catalog = Catalog(tmp_path / "catalog")
    await fill(catalog)
    before = set(catalog._records._memory)
    large = ApiAnswer(200, {}, bytes(module._MEMORY // 8), 10.0)
    await catalog.set_answer(REPO, "*", large, "large")
    assert before < set(catalog._records._memory)
    assert await catalog.whole(catalog.answer(REPO, "*", "large")) == large  # before it is written
    await written(catalog)
    threads, get = [], catalog._records._disk.get

    def noted(key: str) -> object:
        threads.append(threading.current_thread())
        return get(key)

    monkeypatch.setattr(catalog._records._disk, "get", noted)
    for _ in range(2):
        assert await catalog.whole(catalog.answer(REPO, "*", "large")) == large
    assert len(threads) == 2
    assert threading.main_thread() not in threads
    assert before < set(catalog._records._memory)
    await catalog.close()
