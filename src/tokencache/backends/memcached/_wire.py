"""Reads items from memcached: one ``gets``, one answer, parsed as a whole.

pymemcache reads an answer piece by piece, which takes as long as the round trip. Connections and all other commands
are pymemcache's own.
"""

from __future__ import annotations

import re
from functools import lru_cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from tokencache.backends._answers import LARGEST_ANSWER, left_of

if TYPE_CHECKING:
    from tokencache.backends._answers import AnswerSocket

_CHUNK: Final = 1 << 14
_LONGEST_LINE: Final = 2048
_END: Final = b"END\r\n"


class Item(NamedTuple):
    """A value on the server; ``cas`` is the number of this version of it."""

    data: bytes
    cas: bytes


class NoCas(Exception):
    """The server sends items without cas."""


class Reader:
    """Reads items; their names on the server begin with ``prefix``, and it is removed here."""

    __slots__ = ("_request", "_single", "_value")

    def __init__(self, prefix: bytes) -> None:
        head = rb"VALUE %b([!-~]+) \d+ (\d{1,9}) (\d+)\r\n" % re.escape(prefix)
        self._value = re.compile(head)
        self._single = re.compile(head + rb"(.*)\r\nEND\r\n", re.DOTALL)
        self._request = lru_cache(1 << 14)(partial(_request, prefix))

    def gets(self, sock: AnswerSocket | None, names: tuple[str, ...]) -> dict[str, Item]:
        """Return those of several items that exist, by name, in one round trip.

        Raises ``OSError``, ``ValueError``, ``NoCas`` or an exception of pymemcache. After any of them, an answer may
        be unread on the connection.
        """
        if sock is None:
            _raise("MemcacheUnexpectedCloseError")
        answer = sock.ask(self._request(names), _CHUNK)
        whole = self._single.fullmatch(answer)
        if whole is not None:  # the usual answer, complete in one read
            name, size, cas, data = whole.groups()
            if int(size) == len(data) and cas != b"0" and (text := name.decode()) in names:
                return {text: Item(data, cas)}
        while True:
            items, missing = self._items(answer)
            if not missing:
                break
            answer = _more(sock, answer, missing)
        for name in items:
            if name not in names:
                raise ValueError
        return items

    def _items(self, answer: bytes) -> tuple[dict[str, Item], int]:
        """Return the items of an answer, and the least number of missing bytes, 0 if it is complete."""
        items: dict[str, Item] = {}
        start = 0
        while found := self._value.match(answer, start):
            name, size, cas = found.groups()
            begin = found.end()
            left_of(LARGEST_ANSWER, int(size))
            stop = begin + int(size)
            if answer[stop : stop + 2] != b"\r\n":
                if len(answer) < stop + 2:
                    return items, stop + 2 - len(answer)
                raise ValueError
            if cas == b"0":
                raise NoCas
            items[name.decode()] = Item(answer[begin:stop], cas)
            start = stop + 2
        rest = answer[start:]
        return items, 0 if rest == _END else _lacking(rest)


def _request(prefix: bytes, names: tuple[str, ...]) -> bytes:
    """Return the command."""
    return b"gets " + b" ".join(prefix + name.encode() for name in names) + b"\r\n"


def _lacking(rest: bytes) -> int:
    """Return the least number of bytes missing in a line that is not a value or END; raises for a whole line."""
    line, _, more = rest.partition(b"\r\n")
    if len(rest) <= _LONGEST_LINE and not more and not rest.endswith(b"\r\n"):
        return 1
    if line.partition(b" ")[0].endswith(b"ERROR"):
        _raise("MemcacheServerError" if line.startswith(b"SERVER_ERROR") else "MemcacheClientError")
    raise ValueError


def _more(sock: AnswerSocket, answer: bytes, missing: int) -> bytes:
    """Read at least so many more bytes and return the answer with them."""
    pieces = [answer]
    while missing > 0:
        piece = sock.recv(_CHUNK)
        if not piece:
            _raise("MemcacheUnexpectedCloseError")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _raise(name: str) -> NoReturn:
    """Raise an exception of pymemcache without its text, which might hold another key's value (INV-9)."""
    exceptions = import_module("pymemcache.exceptions")
    raise getattr(exceptions, name)
