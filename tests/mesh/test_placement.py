from hypothesis import given
from hypothesis import strategies as st

from mesh.placement import ranked

NODES = st.lists(st.text("0123456789abcdef", min_size=1, max_size=32), min_size=1, max_size=12, unique=True)


@given(key=st.text(), nodes=NODES)
def test_everybody_computes_the_same_order(key: str, nodes: list[str]) -> None:
    assert ranked(key, nodes) == ranked(key, reversed(nodes))
    assert sorted(ranked(key, nodes)) == sorted(nodes)


@given(key=st.text(), nodes=NODES, data=st.data())
def test_only_the_keys_of_a_lost_node_move(key: str, nodes: list[str], data: st.DataObject) -> None:
    lost = data.draw(st.sampled_from(nodes))
    assert [node for node in ranked(key, nodes) if node != lost] == ranked(key, [n for n in nodes if n != lost])


def test_keys_are_spread_evenly() -> None:
    nodes = [f"node-{i}" for i in range(10)]
    counts = dict.fromkeys(nodes, 0)
    for i in range(5000):
        counts[ranked(f"sha256:{i}", nodes)[0]] += 1
    assert min(counts.values()) > 350, counts
    assert max(counts.values()) < 650, counts
