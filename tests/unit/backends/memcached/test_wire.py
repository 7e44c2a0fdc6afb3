"""Reading an answer of memcached, in any split of its bytes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pymemcache.exceptions import MemcacheClientError, MemcacheServerError, MemcacheUnexpectedCloseError

from tokencache.backends.memcached._wire import Item, NoCas, Reader

if TYPE_CHECKING:
    from tokencache.backends._answers import AnswerSocket

NAMES = ("one", "one:lock")


class Talk:
    """A connection whose answer comes in these pieces, and which then closes."""

    def __init__(self, *pieces: bytes) -> None:
        self.sent = b""
        self._pieces = iter(pieces)

    def sendall(self, data: bytes) -> None:
        """Take a command."""
        self.sent += data

    def recv(self, size: int) -> bytes:
        """Return the next piece, never longer than was asked for."""
        piece = next(self._pieces, b"")
        assert len(piece) <= size
        return piece

    def ask(self, data: bytes, size: int) -> bytes:
        """Do both."""
        self.sendall(data)
        return self.recv(size)


def read(*pieces: bytes, names: tuple[str, ...] = NAMES, prefix: bytes = b"") -> dict[str, Item]:
    """Read items from an answer."""
    return Reader(prefix).gets(cast("AnswerSocket", Talk(*pieces)), names)


def answer(items: dict[str, bytes], cas: bytes = b"7") -> bytes:
    """Return a server's answer with these items."""
    values = [b"VALUE %b 0 %d %b\r\n%b\r\n" % (name.encode(), len(data), cas, data) for name, data in items.items()]
    return b"".join(values) + b"END\r\n"


def test_the_command_names_all_items() -> None:
    """One `gets` asks for all names, each with the prefix; the result has no prefix."""
    talk = Talk(b"VALUE app:one 5 1 12\r\nx\r\nEND\r\n")
    assert Reader(b"app:").gets(cast("AnswerSocket", talk), NAMES) == {"one": Item(b"x", b"12")}
    assert talk.sent == b"gets app:one app:one:lock\r\n"


@given(
    data=st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=60) | st.just(b"x\r\nEND\r\n")),
    cuts=st.lists(st.integers(0, 200), max_size=8) | st.just(range(200)),
)
@example(data={"one": b"a\r\nEND\r\n", "one:lock": b"END\r\n"}, cuts=range(200))
@example(data={}, cuts=range(200))
def test_an_answer_comes_in_any_pieces(data: dict[str, bytes], cuts: list[int]) -> None:
    """The same items are read wherever the answer is cut, also inside a line or a value that looks like the end."""
    whole = answer(data)
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(whole)}), len(whole)]
    pieces = [whole[start:stop] for start, stop in itertools.pairwise(edges)]
    assert read(*pieces) == {name: Item(value, b"7") for name, value in data.items()}


@given(data=st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=60), min_size=1), drop=st.integers(1, 300))
def test_an_answer_that_ends_early_is_refused(data: dict[str, bytes], drop: int) -> None:
    """A connection that closes during an answer is an error, wherever that happens."""
    whole = answer(data)
    with pytest.raises(MemcacheUnexpectedCloseError):
        read(whole[: max(0, len(whole) - drop)])


def test_a_large_value_comes_in_many_pieces() -> None:
    """A megabyte is joined from the pieces of many reads."""
    data = bytes(range(256)) * 4096
    whole = answer({"one": data})
    pieces = [whole[start : start + 5000] for start in range(0, len(whole), 5000)]
    assert read(*pieces)["one"].data == data


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"ERROR\r\n", MemcacheClientError),
        (b"CLIENT_ERROR line too long\r\n", MemcacheClientError),
        (b"SERVER_ERROR out of memory writing get response\r\n", MemcacheServerError),
        (b"VALUE one 0 1 7\r\nx\r\nSERVER_ERROR out of memory\r\n", MemcacheServerError),
        (b"VALUE one 0 1 0\r\nx\r\nEND\r\n", NoCas),
        (b"", MemcacheUnexpectedCloseError),
        (b"END\r\nEND\r\n", ValueError),
        (b"END\r\nVALUE one 0 1 7\r\nx\r\nEND\r\n", ValueError),
        (b"STORED\r\n", ValueError),
        (b"VALUE two 0 1 7\r\nx\r\nEND\r\n", ValueError),
        (b"VALUE one 0 1\r\nx\r\nEND\r\n", ValueError),
        (b"VALUE one 0 -1 7\r\nx\r\nEND\r\n", ValueError),
        (b"VALUE one 0 1_0 7\r\n0123456789\r\nEND\r\n", ValueError),
        (b"VALUE one 0 1 7\r\nxyz\r\nEND\r\n", ValueError),
        (b"VALUE one 0 1 7\r\nx--END\r\n", ValueError),
        (b"VALUE one 0 1 7 8\r\nx\r\nEND\r\n", ValueError),
        (b"x" * 3000, ValueError),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_an_answer_to_something_else_is_refused(said: bytes, error: type[Exception]) -> None:
    """A server error, an item not asked for, a second answer or an endless line: each is refused."""
    with pytest.raises(error) as caught:
        read(said)
    assert "one" not in str(caught.value)


def test_an_item_without_our_prefix_is_refused() -> None:
    """An item without our prefix belongs to another program, although the rest of its name fits."""
    with pytest.raises(ValueError, match=r"^$"):
        read(b"VALUE one 0 1 7\r\nx\r\nEND\r\n", prefix=b"app:")


def test_a_connection_that_is_closed_is_not_written_to() -> None:
    """After pymemcache closes a connection, its socket is None."""
    with pytest.raises(MemcacheUnexpectedCloseError):
        Reader(b"").gets(None, NAMES)


@given(
    said=st.binary(max_size=80) | st.lists(st.sampled_from([b"VALUE one 0 1 7\r\n", b"END\r\n", b"x", b"\r\n", b" "]))
)
def test_any_bytes_are_read_or_refused(said: bytes | list[bytes]) -> None:
    """Any bytes are read or refused with our error, and only items that were asked for are read."""
    pieces = [said] if isinstance(said, bytes) else said
    try:
        found = read(*pieces)
    except (ValueError, NoCas, MemcacheClientError, MemcacheServerError, MemcacheUnexpectedCloseError):
        return
    assert set(found) <= set(NAMES)
