"""Blocks that meet: what may change places, checked against the blocks themselves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import networkx as nx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pleas_fx.blocks import Units, components, find_units
from pleas_fx.ir import IntArray

Partition = list[int]  # the block of each channel


def relations(partitions: list[Partition]) -> tuple[int, list[IntArray]]:
    """Channels first, then the blocks of each partition; how many classes that makes."""
    count, found = len(partitions[0]), []
    for blocks in partitions:
        children = np.arange(len(blocks))
        found.append(np.stack([children, count + np.array(blocks, np.int64)]))
        count += max(blocks) + 1
    return count, found


def units(*partitions: Partition) -> Units:
    """The units of channels that lie in blocks of several partitions."""
    return find_units(*relations(list(partitions)))


def kinds(found: Units, size: int) -> list[int]:
    """Channels of one number may be exchanged inside a unit; numbered as they come."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(int(c), len(numbers)) for c in found.colours[:size]]


def groups(labels: IntArray) -> set[frozenset[int]]:
    """Which places have the same label."""
    return {frozenset(np.flatnonzero(labels == n).tolist()) for n in np.unique(labels)}


def moves(found: Units, size: int) -> Iterator[IntArray]:
    """Exchanges that are allowed: two channels of a unit, two units with the same kinds."""
    unit, colour = found.of[:size], found.colours[:size]
    for a, b in combinations(range(size), 2):
        if unit[a] == unit[b] and colour[a] == colour[b]:
            order = np.arange(size)
            order[[a, b]] = b, a
            yield order
    inside = {u: np.flatnonzero(unit == u) for u in np.unique(unit[unit >= 0]).tolist()}
    for one, two in combinations(inside.values(), 2):
        one, two = (part[np.argsort(colour[part], kind="stable")] for part in (one, two))
        if np.array_equal(colour[one], colour[two]):
            order = np.arange(size)
            order[one], order[two] = two, one
            yield order


def test_blocks_of_one_operator_are_units() -> None:
    """Two blocks of three: whole blocks are exchanged, and channels inside."""
    found = units([0, 0, 0, 1, 1, 1])
    assert groups(found.of[:6]) == {frozenset({0, 1, 2}), frozenset({3, 4, 5})}
    assert kinds(found, 6) == [0] * 6
    assert not found.held.size


def test_equal_blocks_are_the_same_units() -> None:
    """A norm's groups and a convolution's."""
    found = units([0, 0, 1, 1], [0, 0, 1, 1])
    assert groups(found.of[:4]) == {frozenset({0, 1}), frozenset({2, 3})}
    assert kinds(found, 4) == [0] * 4


def test_blocks_inside_blocks_keep_their_order() -> None:
    """The larger blocks are exchanged; the first inner block stays the first."""
    found = units([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3])
    assert groups(found.of[:8]) == {frozenset(range(4)), frozenset(range(4, 8))}
    assert kinds(found, 8) == [0, 0, 1, 1, 0, 0, 1, 1]
    assert not found.held.size


def test_of_rows_and_columns_the_fewer_keep_their_place() -> None:
    """A table of two rows and three columns: columns are exchanged, each with its rows in order."""
    found = units([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
    assert groups(found.of[:6]) == {frozenset({0, 3}), frozenset({1, 4}), frozenset({2, 5})}
    assert kinds(found, 6) == [0, 0, 0, 1, 1, 1]
    assert found.held.tolist() == [6, 7]


def test_blocks_that_overlap_by_chance_leave_what_is_common() -> None:
    """Pairs across the border of two triples: only channels in the same blocks are exchanged."""
    found = units([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2])
    assert found.held.tolist() == [6, 7]
    assert kinds(found, 6) == [0, 0, 0, 1, 1, 1]
    assert groups(found.of[:6]) == {frozenset({0, 1}), frozenset({2, 3}), frozenset({4, 5})}


partitions = st.integers(2, 8).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=3)
)


@given(partitions)
def test_every_move_keeps_all_blocks(given_partitions: list[Partition]) -> None:
    """Whatever is exchanged, what was together in a block is together in one afterwards."""
    size, found = len(given_partitions[0]), units(*given_partitions)
    for order in moves(found, size):
        for blocks in map(np.array, given_partitions):
            assert groups(blocks[order]) == groups(blocks)


@given(partitions)
def test_held_blocks_keep_their_channels(given_partitions: list[Partition]) -> None:
    """No move takes a channel out of a block that stays in place."""
    size, found = len(given_partitions[0]), units(*given_partitions)
    _, every = relations(given_partitions)
    for order in moves(found, size):
        for children, blocks in every:
            stays = np.isin(blocks, found.held)
            assert np.array_equal(blocks[order][stays], blocks[stays]), children


edges = st.integers(1, 12).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(*(st.integers(0, n - 1),) * 2), max_size=14))
)


def numbered(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Components by another library, in the order of their smallest vertices."""
    graph = nx.Graph(pairs)
    graph.add_nodes_from(range(count))
    ordered = sorted(nx.connected_components(graph), key=min)
    return [next(k for k, part in enumerate(ordered) if v in part) for v in range(count)]


@given(edges)
def test_components_are_those_of_a_graph_library(case: tuple[int, list[tuple[int, int]]]) -> None:
    """Loops, repeated edges and edges both ways included; numbered by their smallest vertex."""
    count, pairs = case
    found = components(count, np.array(pairs, np.int64).reshape(-1, 2).T)
    assert found.tolist() == numbered(count, pairs)


def test_long_chains_are_one_component() -> None:
    """In any order; the control lacks one edge."""
    size, random = 5000, np.random.default_rng(0)
    chain = np.stack([np.arange(size - 1), np.arange(1, size)])
    for order in (np.arange(size - 1), random.permutation(size - 1)):
        assert not components(size, chain[:, order]).any()
        assert set(components(size, chain[:, order[1:]]).tolist()) == {0, 1}
