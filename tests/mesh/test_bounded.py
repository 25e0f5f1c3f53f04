from mesh.bounded import Bounded


def test_what_was_set_longest_ago_is_dropped_first() -> None:
    kept: Bounded[str, int] = Bounded(2)
    kept["a"], kept["b"] = 1, 2
    kept["a"] = 3
    kept["c"] = 4
    assert kept == {"a": 3, "c": 4}
    assert kept.setdefault("d", 5) == 5
    kept |= {"e": 6}
    assert list(kept) == ["d", "e"]
