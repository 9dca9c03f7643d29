"""Changes of bytes and of trees of plain values, drawn by a seeded generator."""

import copy
from collections.abc import Iterator
from random import Random
from typing import Any

#: What can stand where something else was expected.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 10**30, -(10**400), 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        "0.5",
        "384",
        "nan",
        "null",
        "\0",
        "é",
        "\ud800",
        "a" * 100_000,
        "../../x",
        "<b>",
        "%s{0}",
        "=",
        "#",
    ),
    *([], [[]], [1, "a", None], [0] * 10_000, {}, {"": 0}, {"a": {"b": []}}),
)


def changed_bytes(content: bytes, random: Random) -> bytes:
    """One to three changes: flipped bits, a cut, a hole, a part written twice or elsewhere, foreign bytes."""
    found = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 3))):
        place, length = random.randrange(len(found) + 1), random.choice((1, 2, 8, 100))
        way = random.randrange(6)
        if way <= 1 and place < len(found):
            found[place] ^= 1 << random.randrange(8)
        elif way == 2:
            del found[place:]
        elif way == 3:
            del found[place : place + length]
        elif way == 4:
            found[place:place] = found[:length] if random.random() < 0.5 else found[place : place + length]
        else:
            found[place:place] = random.choice(
                (b"\0", b"\xff\xfe", b"\r\n", b"\t", b"{", b'"', b"NaN", b"9" * 5000)
            )
    return bytes(found)


def changed_tree(tree: Any, random: Random) -> Any:
    """A copy with one or two changes: an odd value, a key lost or added, two values exchanged, a value nested."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 2))):
        places = list(_places(tree))
        if not places:
            return tree
        above, key = random.choice(places)
        way = random.randrange(6)
        if way <= 2:
            above[key] = random.choice(ODD)
        elif way == 3:
            del above[key]
        elif way == 4:
            other, name = random.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                above[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(above[key])
        elif isinstance(above, dict):
            above[random.choice(("x", "", str(key).upper(), f"{key}s", "__class__"))] = above[key]
        else:
            above[key] = [above[key]]
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key), each list's elements by a few of them."""
    if isinstance(tree, dict):
        for key in tree:
            yield tree, key
            yield from _places(tree[key])
    elif isinstance(tree, list):
        for place in range(0, len(tree), max(1, len(tree) // 8)):
            yield tree, place
            yield from _places(tree[place])
