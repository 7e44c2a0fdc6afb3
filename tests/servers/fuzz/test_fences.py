"""Lua against Python: for any text, the scripts of Redis read the fence that ``tokencache.records`` reads.

``make fuzz`` compares 1,000,000 texts and prints the seed of a difference; a run of the tests compares a fixed part.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from redis import Redis

from tokencache._record import encode
from tokencache.backends.redis._scripts import RECORD
from tokencache.records import fence_of, is_another
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = settings.get_profile("fuzz").max_examples > 100
TEXTS = 1_000_000 if LONG else 20_000
BATCH = 1_000
FENCES = """
local found = {}
for number, text in ipairs(ARGV) do
  local fence = fence_of(text)
  found[number] = fence and string.format('%.0f', fence) or ''
end
return found
"""
NEWS = """
local found = {}
for number = 1, #ARGV, 2 do found[#found + 1] = is_another(ARGV[number], ARGV[number + 1]) and 1 or 0 end
return found
"""

OURS = encode(
    Token("secret", expires_at=2e9, issued_at=1e9, scope="a b", extra={"a": {"b": [1]}}),
    fence=1_704_063_600_500_000,
    identity="somebody",
)
NUMBERS = (
    *(b"0", b"5", b"6", b"-1", b"+5", b"007", b"5.0", b"5e0", b"0x5", b"NaN", b"inf", b"true", b"null", b""),
    *(b"9007199254740991", b"9007199254740992", b"9007199254740993", b"09007199254740991", b"9" * 400, b"\xd9\xa5"),
)
BLANKS = (b"", b"", b"", b" ", b"\t\r\n ", b" " * 40, b"\x0b", b"\x0c", b"\x00", b"\xc2\xa0", b"\xef\xbb\xbf", b"/**/")
NAMES = (
    *(
        b'"fence"',
        b'"fence"',
        b'"fence"',
        b'"Fence"',
        b'"\\u0066ence"',
        b'"fence',
        b'fence"',
        b"'fence'",
        b'"fence\x00"',
    ),
    *(b'"a\\"fence"', b'"x"', b'"accessToken"', b'""'),
)
VALUES = (
    *(
        *NUMBERS,
        b'"x"',
        b'"\\ud800"',
        b'"\xff"',
        b'"\\"fence\\":5,"',
        b'"{"',
        b'"["',
        b'"\x00"',
        b'"',
        b"{}",
        b"[]",
        b"[5]",
    ),
    *(b'{"fence":5}', b'[{"fence":5}', b"]", b"}"),
)
PIECES = (*NAMES, *VALUES, *BLANKS, b"{", b"}", b"[", b"]", b",", b":", b'"fence":5', b',"fence":5,', b'{"fence":5}')


def member(draw: random.Random) -> bytes:
    """Return a name and a value."""
    kinds = (BLANKS, NAMES, BLANKS, (b":",), BLANKS, VALUES, BLANKS)
    return b"".join(draw.choice(kind) for kind in kinds)


def members(draw: random.Random) -> bytes:
    """Return an object that may have a fence, whole or damaged."""
    inside = b",".join(member(draw) for _ in range(draw.randint(0, 4)))
    return draw.choice(BLANKS) + b"{" + inside + b"}" + draw.choice(BLANKS)


def nested(draw: random.Random) -> bytes:
    """Return an object with something deep in it, before the fence or behind."""
    depth = draw.choice((1, 19, 20, 199, 201, 999, 1_000, 1_001, 3_000))
    opening, closing = draw.choice(((b"[", b"]"), (b'{"fence":', b"}"), (b'{"a":', b"}")))
    deep = opening * depth + draw.choice(NUMBERS) + closing * draw.choice((0, depth - 1, depth))
    return draw.choice((b'{"fence":5,"x":%b}', b'{"x":%b,"fence":5}', b"%b", b'{"fence":%b}')) % deep


def damaged(draw: random.Random) -> bytes:
    """Return a text of another kind after some cuts and insertions."""
    text = draw.choice((lambda: OURS, lambda: members(draw)))()
    for _ in range(draw.randint(1, 3)):
        start, end = draw.randint(0, len(text)), draw.randint(0, len(text))
        piece = draw.choice((b"", draw.randbytes(1), draw.choice(PIECES)))
        text = text[:start] + piece + text[draw.choice((start, start + 1, end)) :]
    return text


def heap(draw: random.Random) -> bytes:
    """Return pieces in any order."""
    return draw.choice((b"", b"{")) + b"".join(draw.choices(PIECES, k=draw.randint(0, 9)))


KINDS = (members, members, damaged, damaged, heap)


def texts(draw: random.Random) -> Iterator[bytes]:
    """Yield hostile texts without end."""
    while True:
        yield (nested if draw.random() < 0.01 else draw.choice(KINDS))(draw)


@pytest.fixture
def seed() -> int:
    """Return what decides the texts: the same number each time, or for ``make fuzz`` a new one."""
    return random.SystemRandom().randrange(1 << 32) if LONG else 19


def test_lua_reads_each_fence_as_python_does(redis_url: str, seed: int) -> None:
    """INV-3: a record has one fence, for the scripts and for all others, whatever lies in the store."""
    source, some = texts(random.Random(seed)), 0
    with Redis.from_url(redis_url) as client:
        script = client.register_script(RECORD + FENCES)
        for _ in range(TEXTS // BATCH):
            batch = [next(source) for _ in range(BATCH)]
            ours = [fence_of(text) for text in batch]
            theirs = [int(fence) if fence else None for fence in script(args=batch)]
            assert not [each for each in zip(batch, ours, theirs, strict=True) if each[1] != each[2]]
            some += BATCH - ours.count(None)
    assert TEXTS / 10 < some < TEXTS / 2, "the texts have a fence neither always nor never"


def test_lua_finds_the_same_records_new(redis_url: str, seed: int) -> None:
    """INV-6: the scripts and all others agree on which record is another than the seen one."""
    source = texts(random.Random(seed))
    with Redis.from_url(redis_url) as client:
        script = client.register_script(RECORD + NEWS)
        for _ in range(TEXTS // BATCH):
            batch = [next(source) for _ in range(BATCH)]
            batch += [text for text in batch[: BATCH // 10] for _ in range(2)]  # a record and itself
            ours = [is_another(one, other) for one, other in zip(batch[::2], batch[1::2], strict=True)]
            assert [found == 1 for found in script(args=batch)] == ours
