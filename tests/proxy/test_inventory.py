"""A node lists exactly what it holds, and removing reports exactly what was removed."""

import asyncio
from types import SimpleNamespace

import pytest

from mesh.content import Digest
from mesh.store import Store
from proxy.admin.view import Removed
from proxy.catalog import Catalog, File
from proxy.hub.metadata import FileMetadata
from proxy.inventory import Inventory
from proxy.pins import Pins

TINY, OTHER, COMMIT = "models/acme/tiny", "models/acme/other", "c" * 40
READ, SHARED, PART, NAMELESS = (Digest("sha256", letter * 64) for letter in "abcd")
SIZE = 3 << 20  # size of PART: three pieces, one of them here


@pytest.fixture
async def here(tmp_path):
    """A repository with a file that is being read, one that another repository has too, and a partial one."""
    catalog, store = Catalog(tmp_path / "catalog"), Store(tmp_path, 1 << 30)
    for digest in (READ, SHARED):
        (tmp_path / "staged").write_bytes(b"four")
        await store.adopt(digest, 4, tmp_path / "staged", [bytes(32)])
    for digest in (PART, NAMELESS):
        partial = store.open_partial(digest, SIZE)
        partial.add(0, bytes(32), trusted=True)
        store.close_partial(partial)
    for repo, digest, size in ((OTHER, SHARED, 4), (TINY, READ, 4), (TINY, SHARED, 4), (TINY, PART, SIZE)):
        catalog.set_file(repo, COMMIT, digest.hex, File(FileMetadata(digest.hex, size, "text/plain")))
    pins = Pins(tmp_path / "pins.json", {})
    about = dict.fromkeys(("node_id", "role", "settings", "stats", "mesh", "preheater"))
    inventory = Inventory(**about, catalog=catalog, pins=pins, store=store, blobs=SimpleNamespace(swarms={}))
    yield SimpleNamespace(catalog=catalog, store=store, inventory=inventory, pins=pins)
    await catalog.close()
    store.close()


async def test_a_part_of_a_file_is_not_said_to_be_the_whole(here):
    shown = {blob.digest: (blob.have, blob.size) for blob in await here.inventory.blobs()}
    assert shown[str(PART)] == (1 << 20, SIZE)
    assert shown[str(NAMELESS)] == (1 << 20, SIZE)
    assert shown[str(READ)] == (4, 4)


async def test_the_size_of_a_part_is_known_after_a_restart(here, tmp_path):
    here.store.close()
    store = Store(tmp_path, 1 << 30)
    assert {digest: size for digest, size, _ in store.partials()} == {PART: SIZE, NAMELESS: SIZE}
    store.close()


async def test_removing_says_what_stays_and_lets_it_keep_its_pin(here):
    await here.inventory.pin(OTHER, None)
    assert await here.inventory.pin(TINY, None) == 3
    with here.store.open(READ):
        assert await here.inventory.remove(TINY) == Removed(1 << 20, in_use=1, pinned=1)
        assert here.pins.has(READ)
    assert (here.pins.of(OTHER), here.pins.of(TINY)) == ({str(SHARED)}, {str(READ)})
    assert await here.inventory.remove(TINY) == Removed(4, in_use=0, pinned=1)
    assert (here.pins.of(OTHER), here.pins.of(TINY)) == ({str(SHARED)}, set())
    assert {blob.digest for blob in await here.inventory.blobs()} == {str(SHARED), str(NAMELESS)}


@pytest.mark.parametrize("act", ["pin", "remove"])
async def test_what_is_listed_is_there_to_act_on(here, act):
    for _, path, _ in list(here.catalog.files_of(TINY)):
        here.catalog.set_file(TINY, COMMIT, path, File(None))  # the catalog forgets, but the names of blobs stay
    listed = {blob.digest for blob in await here.inventory.blobs() if blob.repo == TINY}
    assert listed == {str(READ), str(SHARED), str(PART)}
    if act == "pin":
        assert await here.inventory.pin(TINY, None) == 3
    else:
        assert await here.inventory.remove(TINY) == Removed((1 << 20) + 8)


@pytest.mark.parametrize("act", ["blobs", "pin", "remove"])
async def test_ten_thousand_blobs_hold_nobody_up(tmp_path, act):
    catalog, digests = Catalog(tmp_path), [Digest("sha256", f"{number:064x}") for number in range(10_000)]
    for digest in digests:
        catalog.set_file(TINY, COMMIT, digest.hex, File(FileMetadata(digest.hex, 4, "text/plain")))

    async def remove(digest):
        return 4

    store = SimpleNamespace(blobs=lambda: [(digest, 4, 0.0) for digest in digests], partials=lambda: (), remove=remove)
    about = dict.fromkeys(("node_id", "role", "settings", "stats", "mesh", "preheater"))
    pins, blobs = Pins(tmp_path / "pins.json", {}), SimpleNamespace(swarms={})
    inventory = Inventory(**about, catalog=catalog, pins=pins, store=store, blobs=blobs)
    asked = {"blobs": (), "pin": (TINY, None), "remove": (TINY,)}[act]
    turns = 0
    async with asyncio.TaskGroup() as group:
        doing = group.create_task(getattr(inventory, act)(*asked))
        while not doing.done():
            turns += 1
            await asyncio.sleep(0)
    assert turns > 5
    await catalog.close()
