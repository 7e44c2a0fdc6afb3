"""Row 23: a provider that states a token's end in every odd form."""

from __future__ import annotations

import itertools
import json
import re
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokencache import TokenCache
from tokencache.backends.memory import MemoryBackend
from tokencache.providers.http import HTTPTokenProvider
from tokencache.providers.oauth_response import date_of, read_json, token_from_mapping
from tokencache.testing.fakes import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conftest import Outcome, Store
    from tokencache.ports import FetchContext
    from tokencache.providers.http import TokenFlow

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("tidy")]

TEN_YEARS = 315_360_000.0
DEFAULT = 300.0


class Oddity(HTTPTokenProvider):
    """A provider that answers with a given ``expires_in``, read by the shipped rules; each answer is a new token."""

    name = "odd"

    def __init__(self, expires_in: object, wall: Callable[[], float]) -> None:
        self.asked = itertools.count(1)
        self.calls = 0
        body = json.dumps(expires_in)

        def answer(_: httpx.Request) -> httpx.Response:
            self.calls = next(self.asked)
            text = f'{{"access_token": "odd-token-{self.calls}", "expires_in": {body}}}'
            return httpx.Response(200, text=text, headers={"Date": formatdate(wall(), usegmt=True)})

        super().__init__(client=httpx.Client(transport=httpx.MockTransport(answer)))
        self._wall = wall

    def identity(self) -> Mapping[str, object]:
        """Return an identity without a secret."""
        return {"issuer": "odd"}

    def token_flow(self, context: FetchContext) -> TokenFlow:
        """Ask, and read the answer by the shipped rules."""
        before_wall = self._wall()
        response = yield httpx.Request("POST", "http://127.0.0.1/token")
        fields = read_json(response, provider=self.name)
        date = date_of(response)
        token, expiry = token_from_mapping(fields, provider=self.name, date=date, before_wall=before_wall)
        if expiry.warning:
            context.warn(expiry.warning)
        return token


def meant(value: object, wall: float) -> float:
    """Return the lifetime at ``wall`` that the table of docs/expiry.md gives a number, or a text with a number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return DEFAULT
    if 1 <= value <= TEN_YEARS:
        return float(value)
    instant = value if 1e9 <= value < 1e11 else value / 1000 if 1e12 <= value < 1e14 else 0.0
    return min(instant - wall, TEN_YEARS) if instant > wall else DEFAULT


NUMBERS = st.one_of(
    st.integers(-(10**15), 10**15),
    st.integers(1, 10**9),
    st.integers(1_700_000_000, 1_900_000_000),
    st.integers(1_700_000_000_000, 1_900_000_000_000),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0.5, 5.0),
)
TEXTS = st.one_of(st.text(alphabet="xyz :TZ-é٣", max_size=12), st.integers(-10, 10**14).map(str))
NESTED = st.recursive(st.none() | st.booleans(), st.lists, max_leaves=3) | st.dictionaries(st.just("s"), st.integers())


@pytest.mark.fault(23, backend="memory", case="whatever `expires_in` holds")
def test_no_expiry_gives_a_late_token_or_a_fetch_per_call(outcome: Outcome) -> None:
    """INV-1, INV-2: the table turns any JSON value into a lifetime: never late, never endless, no fetch per call."""

    @settings(max_examples=150, deadline=None)
    @given(NUMBERS | TEXTS | NESTED)
    @example(TEN_YEARS)
    @example(TEN_YEARS + 1)
    @example(4_102_444_800)
    @example(0)
    @example(-3600)
    @example("3600.0")
    @example("1e3")
    @example(1)
    @example(10**400)
    def holds(value: object) -> None:
        clock = FakeClock()
        provider = Oddity(value, clock.wall)
        cache = TokenCache(MemoryBackend(clock=clock), observers=[], clock=clock, wall=clock.wall)
        source = cache.source(provider)
        lifetime = meant(value, clock.wall_at)
        tokens = {source.token() for _ in range(20)}
        assert len(tokens) == 1
        assert provider.calls == 1
        (token,) = tokens
        assert token.lifetime == pytest.approx(lifetime, rel=1e-6, abs=1e-3)
        early = min(60.0, lifetime / 10)
        clock.advance((lifetime - early) / 2)
        assert source.token() == token
        clock.advance((lifetime - early) / 2 + 0.001)
        assert source.token() != token
        assert provider.calls <= 3

    holds()
    outcome.record("a token that lives as the table says, else 300 s", calls="1 a lifetime")


LASTING = [
    *(None, True, [], {}, "", "never", "٣٦٠٠", 0, -1, "-3600", float("nan"), float("inf"), 10**400),
    *(3600, "3600", "3600.5", 2_592_001, TEN_YEARS, 1e300, 4_102_444_800, "4102444800000", "2100-01-01T00:00:00Z"),
]


@pytest.mark.fault(23, case="as a store keeps it")
@pytest.mark.parametrize("store", ["memory", "file", "redis", "memcached"], indirect=True)
def test_a_token_with_an_odd_expiry_is_shared(store: Store, outcome: Outcome) -> None:
    """INV-2: every store takes any expiry, odd or far away: two processes make one call."""
    mine, theirs = (TokenCache(store.open(), observers=[]) for _ in range(2))
    for number, value in enumerate(LASTING):
        provider = Oddity(value, time.time)
        token, other = (each.source(provider, key=f"k{number}").token() for each in (mine, theirs))
        assert token.value == other.value == "odd-token-1", value
        assert token.expires_at == pytest.approx(other.expires_at, abs=0.001), value
        assert provider.calls == 1, value
        assert store.fence(f"k{number}") > 0
    outcome.record("one token for all", calls="1 a lifetime")
