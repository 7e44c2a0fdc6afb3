"""Where `Any` is allowed: the modules are listed here with their reasons, and no other module of `src` names it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
JSON = "JSON of our own process, read where its fields are known"
REDIS = "redis-py types neither pools, connections nor replies"
REASONS = {
    "tokencache/_engine/effects.py": "a generator's send type cannot depend on what it yielded",
    "tokencache/_record.py": "msgspec takes `object` for a class of the caller's",
    "tokencache/source.py": "what a step is answered depends on the step",
    "tokencache/backends/_answers.py": "a wrapper gives whatever the wrapped socket or stream has",
    "tokencache/backends/memcached/_servers.py": "a client of the user's is of any class",
    "tokencache/backends/redis/_connect.py": REDIS,
    "tokencache/backends/redis/_library.py": "the client library types neither its exceptions nor its pools",
    "tokencache/backends/redis/_health.py": REDIS,
    "tokencache/backends/redis/_backend.py": REDIS,
    "tokencache/cli/_fleet.py": JSON,
    "tokencache/cli/verify.py": JSON,
    "tokencache/integrations/_httpx_flow.py": "a response of httpx or httpx2 holds a request of its own library",
    "tokencache/integrations/msal.py": "MSAL has no types",
    "tokencache/integrations/requests.py": "the types of requests leave out hooks and bodies",
    "tokencache/providers/presets.py": "a table of presets.toml becomes keywords of a class",
    "tokencache/providers/transport.py": "httpx's mounts differ in type between threads and event loops",
    "tokencache/token.py": "each field of a token has a type of its own",
    "tokencache_qpay/callbacks.py": "ASGI and Django have no types that could be named without them",
    "tokencache_qpay/models.py": "`raw` is JSON for callers, as it came",
}


def names_any(tree: ast.AST) -> bool:
    """Return whether a module imports `Any`, or names it as `typing.Any`."""
    return any(
        (isinstance(node, ast.ImportFrom) and any(alias.name == "Any" for alias in node.names))
        or (isinstance(node, ast.Attribute) and node.attr == "Any")
        for node in ast.walk(tree)
    )


def test_any_is_used_where_a_reason_is_listed_and_nowhere_else() -> None:
    """Each module of `src` that names `Any` is in the list, and each module in the list names it."""
    using = {str(path.relative_to(SRC)) for path in SRC.rglob("*.py") if names_any(ast.parse(path.read_text()))}
    assert using == REASONS.keys()


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("from typing import Any, Final", True),
        ("if TYPE_CHECKING:\n    from typing import Any as Whatever", True),
        ("import typing\nx: typing.Any = 1", True),
        ("def f() -> bool:\n    return any([])", False),
        ('"""Any text."""', False),
    ],
)
def test_the_checker_sees_each_way_to_any(code: str, names: bool) -> None:
    """The check also finds an alias, an import in a type-checking block, and `typing.Any`."""
    assert names_any(ast.parse(code)) == names
