"""The identity of a source: what names its record, says whose it is and seals it, as one value."""

from __future__ import annotations

import pytest

from tokencache import TokenCache
from tokencache._keys import fingerprint
from tokencache.testing.fakes import FakeProvider


@pytest.mark.parametrize("key", [None, "by hand"])
def test_the_orders_of_a_flow_hold_the_whole_identity(key: str | None) -> None:
    """INV-10: the first orders of a source name key, fingerprint and sealing, though its key was never read."""
    provider = FakeProvider()
    source = TokenCache("memory://", namespace="n:", encrypt="00" * 32).source(provider, key=key)
    job = source._job("cold")
    assert job.identity == fingerprint(provider.name, provider.identity())
    assert job.key == (key or f"n:{provider.name}:{job.identity}")
    assert job.sealing is not None
    assert (source.key, source._identify().sealing) == (job.key, job.sealing)


def test_the_identity_is_worked_out_once() -> None:
    """The slow fingerprint is paid for once per source."""
    source = TokenCache("memory://").source(FakeProvider())
    assert source._identify() is source._identify()
