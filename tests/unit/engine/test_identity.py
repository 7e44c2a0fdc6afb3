"""The identity of a source: one value holds its key, fingerprint and sealing."""

from __future__ import annotations

import pytest

from tokencache import TokenCache
from tokencache._keys import fingerprint
from tokencache.testing.fakes import FakeProvider


@pytest.mark.parametrize("key", [None, "by hand"])
def test_a_flows_job_holds_the_whole_identity(key: str | None) -> None:
    """INV-10: the first job of a source has key, fingerprint and sealing, although ``key`` was never read."""
    provider = FakeProvider()
    source = TokenCache("memory://", namespace="n:", encrypt="00" * 32).source(provider, key=key)
    job = source._job("cold")
    assert job.identity == fingerprint(provider.name, provider.identity())
    assert job.key == (key or f"n:{provider.name}:{job.identity}")
    assert job.sealing is not None
    assert (source.key, source._identify().sealing) == (job.key, job.sealing)


def test_the_identity_is_computed_once() -> None:
    """The slow fingerprint is computed once per source."""
    source = TokenCache("memory://").source(FakeProvider())
    assert source._identify() is source._identify()
