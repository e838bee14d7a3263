"""Which classes move together as blocks, also where the blocks of one operator meet another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count as count_from

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from pleas_fx.ir import IntArray
from pleas_fx.permuting import occurrences

Hash = npt.NDArray[np.uint64]
Relation = IntArray  # (2, n): children and the blocks they are in, both as classes
NOTHING: Relation = np.zeros((2, 0), np.int64)


@dataclass(frozen=True, slots=True)
class Units:
    """Blocks that meet form one unit; units are exchanged as wholes."""

    of: IntArray  # the unit of each class, -1: none
    colours: Hash  # classes of other colours are never exchanged, for the blocks they are in
    held: IntArray  # blocks that keep their place


def pairs(a: IntArray, b: IntArray) -> Relation:
    """(2, n): every pair once, sorted."""
    if (a[1:] > a[:-1]).all():  # as they are
        return np.stack([a, b])
    base = int(b.max(initial=0)) + 1
    codes = np.sort(a * base + b)  # np.unique hashes integers, which takes longer
    first = np.ones(len(codes), bool)
    np.not_equal(codes[1:], codes[:-1], out=first[1:])
    codes = codes[first]
    found = np.empty((2, len(codes)), np.int64)
    np.floor_divide(codes, base, out=found[0])
    np.subtract(codes, found[0] * base, out=found[1])  # a remainder takes longer
    return found


def components(count: int, pairs: IntArray) -> IntArray:
    """The component of each of ``count`` vertices, joined by the edges (2, n); smallest first.

    Most edges are those of stars: every vertex first follows one to a smaller vertex, and what is
    left joins the ends of these paths.
    """
    ends = np.arange(count)
    ends[np.maximum(*pairs)] = np.minimum(*pairs)
    while (further := ends[ends] != ends).any():
        ends[further] = ends[ends[further]]
    roots = np.flatnonzero(ends == np.arange(count))
    number = np.empty(count, np.int64)
    number[roots] = np.arange(len(roots))
    joined = _components(len(roots), number[ends[pairs]])
    return joined[number[ends]]


def _components(count: int, pairs: IntArray) -> IntArray:
    index = np.int32 if count < 1 << 31 else np.int64  # and floats: SciPy's own types
    rows, columns = pairs[:, pairs[0] != pairs[1]].astype(index)
    matrix = sp.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    return connected_components(matrix, directed=False)[1].astype(np.int64)


def mix(value: Hash) -> Hash:
    """A 64-bit finaliser: equal values, equal hashes; sums of hashes identify multisets."""
    mixed = value >> np.uint64(30)
    mixed ^= value
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def find_units(count: int, relations: Sequence[Relation]) -> Units:
    """The units of all relations, each made by one operator.

    A unit that holds several blocks of one operator (smaller ones inside a larger one, say) moves
    with their order kept: what is in its first block stays there. Where all blocks of some
    operators are one unit, like the rows and columns of a table, nothing could be exchanged: there
    the operator with the fewest blocks keeps them in place, and the others' blocks are units.
    """
    colours, held = np.zeros(count, np.uint64), np.zeros(count, bool)
    salts = count_from(1)
    left = [relation for relation in relations if relation.size]
    unit = _joined(count, left)
    while cut := _to_hold(left, unit):
        for relation in (left[k] for k in cut):
            held[relation[1]] = True
            _colour(colours, relation, unit, next(salts))
        left = [relation for k, relation in enumerate(left) if k not in cut]
        unit = _joined(count, left)
    for relation in left:
        inside = np.isin(unit[relation[1]], _clashing(relation, unit))
        _colour(colours, relation[:, inside], unit, next(salts))
    return Units(_exchangeable(left, unit), colours, np.flatnonzero(held))


def _joined(count: int, relations: Sequence[Relation]) -> IntArray:
    return components(count, np.concatenate([NOTHING, *relations], axis=1))


def _clashing(relation: Relation, unit: IntArray) -> IntArray:
    """Units in which two blocks of a relation hold different children."""
    children, parents = relation
    blocks, block = np.unique(parents, return_inverse=True)
    content = np.zeros(len(blocks), np.uint64)
    np.add.at(content, block, mix(children.astype(np.uint64)))
    _, some, own = np.unique(unit[blocks], return_index=True, return_inverse=True)
    return np.unique(unit[blocks][content != content[some][own]])


def _to_hold(relations: Sequence[Relation], unit: IntArray) -> list[int]:
    """Of every unit that clashes and has no equal: the relations on its smallest set of blocks."""
    alone: dict[int, list[int]] = {}
    accompanied: set[int] = set()
    for k, (_, blocks) in enumerate(relations):
        units = np.unique(unit[blocks]).tolist()
        if len(units) > 1:
            accompanied.update(units)
        else:
            alone.setdefault(units[0], []).append(k)
    found: list[int] = []
    for number, inside in alone.items():
        clashing = [k for k in inside if _clashing(relations[k], unit).size]
        if clashing and number not in accompanied:
            fewest = min((np.unique(relations[k][1]) for k in clashing), key=len)
            found += [k for k in inside if np.isin(relations[k][1], fewest).any()]
    return found


def _colour(colours: Hash, relation: Relation, unit: IntArray, salt: int) -> None:
    """Tell blocks of one unit apart by their order in it, and children by the blocks they are in.

    Applied to one relation after the other, each with its own ``salt``: what is told apart already
    stays so.
    """
    inside, where = np.unique(relation, return_inverse=True)
    children, blocks = where.reshape(relation.shape)
    present = np.unique(blocks)
    order = np.zeros(len(inside), np.uint64)
    order[present] = mix(occurrences(unit[inside[present]]).astype(np.uint64) + np.uint64(1))
    gathered = np.full(len(inside), np.uint64(salt))
    np.add.at(gathered, children, mix(order[blocks]))
    gathered[present] += order[present]
    colours[inside] = mix(mix(colours[inside]) + gathered)


def _exchangeable(relations: Sequence[Relation], unit: IntArray) -> IntArray:
    """The unit of every class that is in a relation with several units."""
    found = np.full(len(unit), -1, np.int64)
    for relation in relations:
        several = len(np.unique(unit[relation[1]])) > 1
        for end in relation:
            found[end] = np.where(several | (found[end] >= 0), unit[end], found[end])
    return found
