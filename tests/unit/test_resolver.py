"""The resolver: it decides the provider, key, policy, backend, encryption and namespace of a source."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any

import pytest

from tokencache import ConfigurationError, RefreshPolicy, Secret
from tokencache._crypto import sealing_of
from tokencache._resolver import Resolver
from tokencache.backends.memory import MemoryBackend
from tokencache.config import Configuration
from tokencache.testing.fakes import FakeProvider

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokencache._resolver import Resolved

FIRST, SECOND = "11" * 32, "22" * 32

# The values that each level gives, from the highest priority down to the default.
ORDER: Mapping[str, Mapping[str, Any]] = {
    "policy": {
        "argument": RefreshPolicy(early=1),
        "table": {"early": 2},
        "attribute": RefreshPolicy(early=3),
        "cache": RefreshPolicy(early=4),
        "file": {"early": 5},
        "default": RefreshPolicy(),
    },
    "key": {"argument": "argument", "table": "table", "attribute": "attribute", "default": None},
    "backend": {
        "cache": "memory://?size=1",
        "table": "memory://?size=2",
        "file": "memory://?size=3",
        "variables": "memory://?size=4",
        "default": "memory://?size=10000",
    },
    "encrypt": {"cache": FIRST, "file": {"keys": [SECOND]}, "default": None},
    "namespace": {"cache": "cache:", "file": "file:", "default": ""},
    "keep_warm": {"argument": True, "table": True, "default": False},
    "provider": {"argument": "object", "table": "table", "default": "entry point"},
}
CASES = [
    pytest.param(what, list(levels)[number:], id=f"{what} by {level}")
    for what, levels in ORDER.items()
    for number, level in enumerate(levels)
]


class Own(FakeProvider):
    """A provider with a credential and a setting."""

    def __init__(self, site: str = "entry point") -> None:
        super().__init__("own")
        self.site = site

    def identity(self) -> Mapping[str, object]:
        """Return a credential."""
        return {"secret": Secret("s")}


def resolved(what: str, levels: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Resolver, Resolved]:
    """Return the resolved value if ``what`` is given at these levels."""
    given = {level: {what: ORDER[what][level]} for level in levels}

    def own(site: str = "entry point") -> Own:
        made = Own(site)
        made.__dict__ |= given.get("attribute", {})
        return made

    monkeypatch.setattr("tokencache.plugins.load_provider_factory", lambda _name: own)
    monkeypatch.setattr("tokencache.plugins.known", lambda _group: [])
    document: dict[str, Any] = {}
    for name, value in given.get("file", {}).items():
        document["encryption" if name == "encrypt" else name] = value
    if what != "provider":
        document["providers"] = {"own": {"type": "own"} | given.get("table", {})}
    elif "table" in given:
        document["providers"] = {"own": {"type": "own", "site": "table"}}
    environ = {"TOKENCACHE_BACKEND": given["variables"]["backend"]} if "variables" in given else {}
    resolver = Resolver(Configuration.load(document, environ=environ), **given.get("cache", {}))
    if what == "provider":
        return resolver, resolver.resolve(Own("object") if "argument" in given else "own")
    return resolver, resolver.resolve("own", **given.get("argument", {}))


@pytest.mark.parametrize(("what", "levels"), CASES)
def test_the_highest_given_level_wins(what: str, levels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level overrides all levels after it."""
    resolver, found = resolved(what, levels, monkeypatch)
    expected = ORDER[what][levels[0]]
    match what:
        case "policy":
            assert found.policy == (RefreshPolicy(**expected) if isinstance(expected, dict) else expected)
        case "backend":
            assert f"memory://?size={found.handle.backend._records.maxsize}" == expected  # type: ignore[attr-defined]
        case "encrypt" if expected is None:
            assert found.sealer is None
        case "encrypt":
            key = sealing_of(expected["keys"] if isinstance(expected, dict) else expected)
            assert found.sealer is not None
            assert found.sealer.sealing(found.provider, "f").open("k", key.seal("k", b"plain")) == b"plain"
        case "namespace":
            assert resolver.namespace == expected
        case "provider":
            assert found.provider.site == expected  # type: ignore[attr-defined]
        case _:
            assert getattr(found, what) == expected


def test_a_table_sets_single_policy_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that the provider's table leaves out comes from the next level with a policy."""
    monkeypatch.setattr("tokencache.plugins.load_provider_factory", lambda _name: Own)
    document = {"policy": {"early": 5, "window": 7}, "providers": {"own": {"type": "own", "policy": {"early": 2}}}}
    found = Resolver(Configuration.load(document, environ={})).resolve("own")
    assert (found.policy.early, found.policy.window) == (2, 7)


def test_each_backend_is_opened_once() -> None:
    """A table that names the cache's backend shares its handle; two tables that name another one share one too."""
    table = {"type": "client_credentials", "token_url": "https://id.example/t", "client_id": "i", "client_secret": "s"}
    tables = {
        "a": table,
        "b": table | {"backend": "one"},
        "c": table | {"backend": "two"},
        "d": table | {"backend": "two"},
    }
    document = {"backend": "one", "backends": {"one": "memory://", "two": "memory://"}, "providers": tables}
    resolver = Resolver(Configuration.load(document, environ={}))
    a, b, c, d = (resolver.resolve(name) for name in tables)
    assert a.handle is b.handle is resolver.main
    assert c.handle is d.handle is not resolver.main
    assert resolver.handles == [a.handle, c.handle]
    assert [a.backend, b.backend, c.backend] == [None, "one", "two"]


def test_a_backend_that_is_passed_in_is_not_owned() -> None:
    """The resolver owns the backends that it opens; its caller keeps a backend object that was passed in."""
    given = MemoryBackend()
    found = Resolver(backend=given).resolve(FakeProvider())
    assert found.handle.backend is given
    assert (found.handle.owned, found.backend) == (False, None)
    assert Resolver(backend="memory://").main.owned


def test_a_function_needs_a_key() -> None:
    """A function has no identity; the caller's key names its record."""
    resolver = Resolver(backend=MemoryBackend())
    with pytest.raises(ConfigurationError, match="give key="):
        resolver.resolve(dict)
    assert resolver.resolve(dict, key="k").key == "k"


def test_the_resolved_value_is_immutable() -> None:
    """One frozen value holds all decisions."""
    found = Resolver(backend=MemoryBackend()).resolve(FakeProvider())
    with pytest.raises(FrozenInstanceError):
        found.key = "other"  # type: ignore[misc]
