"""Pins last: across restarts, and whatever the catalog drops; a damaged pin file is reported."""

import pytest

from mesh.content import Digest
from mesh.errors import StoreUnusable
from proxy import room
from proxy.catalog import Catalog, File, _key
from proxy.pins import Pins

TINY, OTHER = "models/acme/tiny", "models/acme/other"
ONE, TWO = (Digest("sha256", letter * 64) for letter in "12")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "pins.json"


async def test_they_are_there_after_a_restart(file):
    pins = Pins(file, {})
    await pins.add(TINY, [str(ONE)])
    await pins.add(TINY, [str(TWO)])
    await pins.add(OTHER, [str(ONE)])
    assert await pins.keep(TINY, [str(TWO)]) == 1
    pins = Pins(file, {TINY: ["of an earlier version"]})
    assert (pins.repos_of(ONE), pins.repos_of(TWO)) == ({OTHER}, {TINY})
    assert await pins.keep(OTHER) == 1
    assert Pins(file, {}).of(OTHER) == set()


async def test_what_an_earlier_version_kept_in_the_catalog_outlasts_what_the_catalog_drops(tmp_path, file, monkeypatch):
    monkeypatch.setattr(room, "_NAMES_LIMIT", 10_000)
    for life in range(2):
        catalog = Catalog(tmp_path / "catalog")
        if not life:
            catalog._records.set(_key("pins"), {TINY: [str(ONE)]})
        assert Pins(file, catalog.earlier_pins()).has(ONE)
        for number in range(100):
            catalog.set_file(TINY, f"{life}", f"{number}", File(None))
        await catalog.close()
    catalog = Catalog(tmp_path / "catalog")
    assert catalog.earlier_pins() == {}
    assert Pins(file, {}).has(ONE)
    await catalog.close()


@pytest.mark.parametrize("content", [b"", b'{"models/acme/tiny": 1}', b"\xff\xfe"], ids=["empty", "other", "garbage"])
async def test_a_damaged_file_is_put_aside_and_said_so(file, caplog, content):
    for name in ("pins.json.damaged", "pins.json.damaged-2"):
        file.write_bytes(content)
        assert Pins(file, {}).of(TINY) == set()
        assert f"{file} are damaged" in caplog.text
        assert file.with_name(name).read_bytes() == content
    pins = Pins(file, {})
    await pins.add(TINY, [str(ONE)])
    assert Pins(file, {}).of(TINY) == {str(ONE)}


async def test_what_cannot_be_written_down_is_refused_and_changes_nothing(file):
    pins = Pins(file, {})
    await pins.add(TINY, [str(ONE)])
    file.with_suffix(".new").mkdir()
    with pytest.raises(StoreUnusable, match=r"the pins stay as they were: cannot write .*pins.json: Is a directory"):
        await pins.add(TINY, [str(TWO)])
    assert (pins.of(TINY), pins.repos_of(TWO)) == ({str(ONE)}, set())
    file.unlink()
    file.mkdir()
    with pytest.raises(StoreUnusable, match="cannot read the pins in"):
        Pins(file, {})
