"""Which base a head and a tower are taken of, however it was said."""

from __future__ import annotations

import pytest

from qexport.recipe.choice import ModelChoice


@pytest.mark.parametrize(
    ("said", "head", "tower", "named"),
    [
        ({}, None, None, False),
        ({"mtp_from": "a"}, ("a", None), ("a", None), False),
        ({"vision_from": "a", "vision_from_revision": "v"}, None, ("a", "v"), True),
        ({"base": "a", "base_revision": "v"}, ("a", "v"), ("a", "v"), True),
        ({"base": "a", "mtp_from": "b"}, ("b", None), ("a", None), True),
        ({"base": "a", "vision_from": "b"}, ("a", None), ("b", None), True),
        ({"mtp_from": "a", "vision_from": "b"}, ("a", None), ("b", None), True),
    ],
    ids=str,
)
def test_bases(said, head, tower, named):
    choice = ModelChoice("m", **said)
    assert (choice.head_base, choice.tower_base, choice.tower_named) == (head, tower, named)
    assert choice.models == tuple(dict.fromkeys(["m", *(p[0] for p in (head, tower) if p)]))
