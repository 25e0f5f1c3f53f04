"""The directory is bounded, and no node's flood keeps others out of it."""

from __future__ import annotations

from mesh.content import Digest
from mesh.directory import Directory


def blobs(first: int, count: int) -> list[Digest]:
    return [Digest("sha256", f"{number:064x}") for number in range(first, first + count)]


def held(directory: Directory, node: str, of: list[Digest]) -> int:
    return sum(node in directory.holders(digest) for digest in of)


def test_a_node_has_its_part_and_others_have_theirs() -> None:
    directory = Directory(max_entries=1000, max_of_node=600)
    flood, honest = blobs(0, 2000), blobs(5000, 300)
    for start in range(0, 2000, 500):
        directory.add("liar", flood[start : start + 500])
    assert held(directory, "liar", flood) == 600
    directory.add("honest", honest)
    assert held(directory, "honest", honest) == 300


def test_when_it_is_full_those_with_most_make_room_for_those_with_less() -> None:
    directory = Directory(max_entries=1000, max_of_node=600)
    floods, honest = {"a": blobs(0, 600), "b": blobs(1000, 600)}, blobs(5000, 300)
    for node, flood in floods.items():
        directory.add(node, flood)
    directory.add("honest", honest)
    assert held(directory, "honest", honest) == 300
    for node, flood in floods.items():
        directory.add(node, flood)
    assert held(directory, "honest", honest) == 300, "who floods again takes nothing from who has less"
    assert sum(held(directory, node, flood) for node, flood in floods.items()) <= 700
    for node in [*floods, "honest"]:
        directory.forget(node)
    assert not any(map(directory.holders, [*floods["a"], *floods["b"], *honest]))
    directory.add("a", floods["a"])
    assert held(directory, "a", floods["a"]) == 600
