"""The catalog works where there is no folder for temporary files, as in a container."""

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from proxy.database import first_of, open_database

TOP = Path(__file__).parents[2]
# Makes all folders read-only in which SQLite looks for room, and lets only the one with the catalog be written to.
READ_ONLY = """
    for folder in /var/tmp /usr/tmp /tmp "$PWD"; do
        test -d "$folder" || continue
        mount --bind "$folder" "$folder" && mount -o remount,bind,ro "$folder" || exit 77
    done
    mount --bind "$DATA" "$DATA" && mount -o remount,bind,rw "$DATA" && cd "$PWD" || exit 77
    exec "$@"
"""
PROGRAM = """
    import asyncio, sys, time
    from pathlib import Path
    from proxy.catalog import Catalog, Ref
    from proxy.database import open_database

    ROOT, COUNT = Path(sys.argv[1]) / "catalog", 200_000

    async def main():
        disk, now = open_database(ROOT), time.time()
        if sys.argv[2] == "fill":  # as an earlier version left it: the first write has to shift all rows
            insert = "INSERT INTO Cache(key, raw, store_time, access_time, mode, value) VALUES(?, 1, ?, ?, 1, ?)"
            rows = ((f"2\\0file\\0{i}", now + i * 1e-4, now, b"x" * 250) for i in range(COUNT))
            with disk.transact():
                disk._con.executemany(insert, rows)
        if sys.argv[2] != "fill":
            catalog = Catalog(ROOT)
            catalog.set_ref("models/a/b", "main", Ref("c" * 40, now))
            await catalog.close()
            [(shifted,)] = disk._sql("SELECT COUNT(*) FROM Cache WHERE store_time > 1e10")
            print(catalog._records._is_broken, shifted > COUNT)
        disk.close()

    asyncio.run(main())
"""


def run(data: Path, what: str, *prefix: str) -> tuple[str, str]:
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(data), what]
    environment = {name: value for name, value in os.environ.items() if name not in ("TMPDIR", "SQLITE_TMPDIR")}
    done = subprocess.run(
        [*prefix, *program],
        cwd=TOP,
        env=environment | {"DATA": str(data), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77:
        pytest.skip(f"this machine does not let us mount: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("mounts need root and util-linux")
    run(tmp_path, "fill")
    return tmp_path


SHUT = ("unshare", "--mount", "sh", "-c", READ_ONLY, "sh")


def test_a_large_catalog_is_measured_without_temporary_files(filled: Path) -> None:
    assert run(filled, "memory", *SHUT) == ("False True", "")


def test_an_error_of_the_disk_is_not_taken_for_damage_because_the_rollback_fails_too(tmp_path: Path) -> None:
    disk = open_database(tmp_path / "catalog")

    def write() -> None:
        with disk.transact():
            disk._sql("ROLLBACK")  # as SQLite does by itself after some errors
            raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(sqlite3.OperationalError) as caught:
        write()
    disk.close()
    assert "no transaction is active" in str(caught.value)
    assert str(first_of(caught.value)) == "disk I/O error"
