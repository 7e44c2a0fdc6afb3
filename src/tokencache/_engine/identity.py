"""The identity of a source: the key, the fingerprint and the sealing of its record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tokencache import _keys

if TYPE_CHECKING:
    from tokencache._engine.context import SourceContext
    from tokencache._record import Sealing


@dataclass(frozen=True, slots=True)
class Identity:
    """The key of a record, the fingerprint of its owner's identity (INV-10), and its sealing."""

    key: str
    fingerprint: str
    sealing: Sealing | None

    @classmethod
    def of(cls, world: SourceContext, namespace: str, key: str | None) -> Self:
        """Compute the identity, with ``key`` if one was given; the slow fingerprint may take some 50 ms."""
        provider, sealer = world.provider, world.sealer
        fingerprint = _keys.fingerprint(provider.name, provider.identity())
        return cls(
            key=key if key is not None else _keys.record_key(namespace, provider.name, fingerprint),
            fingerprint=fingerprint,
            sealing=None if sealer is None else sealer.sealing(provider, fingerprint),
        )
