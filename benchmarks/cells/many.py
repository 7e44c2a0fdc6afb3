"""Many sources of one cache, each with its token, for timings with many sources."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokencache import Token, TokenCache

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokencache import TokenSource


def many_sources(count: int, login: Callable[[], Any], cache: TokenCache | None = None) -> list[TokenSource]:
    """Return ``count`` sources of one cache, each with its own token.

    The first fetches its token. The others get a copy of its local copy, because a fetch for each would take longer
    than the run.
    """
    cache = cache or TokenCache("memory://", sources=count)
    held = [cache.source(login, key=f"source-{number}") for number in range(count)]
    held[0].token()
    first = held[0]._copy  # noqa: SLF001
    for number, source in enumerate(held[1:]):
        token = Token(f"token-{number}", expires_at=first.token.expires_at, issued_at=float(number))
        data = first.data.replace(first.token.value.encode(), token.value.encode())
        copy = replace(first, token=token, data=data, usable_at=first.usable_at + number * 1e-6)
        source._keep(copy, first.refresh_at, 0.0)  # noqa: SLF001
    return held
