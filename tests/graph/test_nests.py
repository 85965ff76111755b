"""Nests taken apart and put together, against torch's pytrees."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch.utils import _pytree as pytree

from pyrogen.graph._nests import filled, places_of, taken_apart

Pair = namedtuple("Pair", ["first", "second"])
A, B, C = (torch.full((2,), float(i)) for i in range(3))
NESTS = [
    A,
    3.0,
    None,
    (),
    (A, [B, {"c": C, "none": None}], "word"),
    {"z": A, "a": (B, 2)},
    Pair(A, {"x": [B]}),
    ([Pair(1, A)], OrderedDict(b=B, a=C)),
    OrderedDict(b=(B,), a=C),
]


@pytest.mark.parametrize("nest", NESTS)
def test_nests_are_those_of_torch(nest):
    leaves = []
    taken_apart(nest, leaves)
    expected, structure = pytree.tree_flatten(nest)
    assert [id(leaf) for leaf in leaves] == [id(leaf) for leaf in expected]
    rebuilt = filled(places_of(structure), leaves)
    again, same = pytree.tree_flatten(rebuilt)
    assert same == structure
    assert [id(leaf) for leaf in again] == [id(leaf) for leaf in expected]


def test_structures_tell_nests_apart():
    structures = [taken_apart(nest, []) for nest in NESTS if nest is not None]
    structures += [taken_apart(nest, []) for nest in ((A,), [A], {"a": A}, {"b": A}, (A, (B,)))]
    assert len(set(structures)) == len(structures)
    assert taken_apart((A, {"k": [B]}), []) == taken_apart((C, {"k": [A]}), [])
