"""docs/integrations.md, run: each of its examples, unchanged except for the API's address."""

from __future__ import annotations

import asyncio
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tokencache_qpay.testing import FakeQPay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from conftest import API

    Run: TypeAlias = Callable[[str], dict[str, Any]]

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
EXAMPLES = re.findall(r"^<!-- run: (\w+) -->\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class Anybody(frozenset[str]):
    """The set of all tokens."""

    def __contains__(self, item: object) -> bool:
        """Return whether it looks like a token."""
        return str(item).startswith("Bearer ")


@pytest.fixture
def qpay(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeQPay]:
    """A QPay that the environment names."""
    for name in ("TOKENCACHE_BACKEND", "REDIS_DATABASE_URI", "QPAY_CACHE_KEY"):
        monkeypatch.delenv(name, raising=False)
    with FakeQPay() as fake:
        for name, value in fake.environ.items():
            monkeypatch.setenv(name, value)
        yield fake


@pytest.fixture
def api(serve: Callable[..., API], qpay: FakeQPay) -> API:
    """The API of the page, which serves any token."""
    api = serve()
    api.accepts = Anybody()  # type: ignore[assignment]
    return api


@pytest.fixture
def run(api: API) -> Run:
    """Run the examples of a name, after the one that makes the source, and return their definitions."""

    def run(name: str) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "recipe"}
        found = [code for kind, code in EXAMPLES if kind == name]
        assert found
        for code in [code for kind, code in EXAMPLES if kind == "source"] + found:
            exec(code.replace("https://api.example", api.url), names)
        return names

    return run


def served(api: API) -> bool:
    """Return whether the API got a request for the balance, with a token."""
    return [asked.path for asked in api.asked] == ["/balance"] and str(api.tokens[0]).startswith("Bearer ")


def test_each_example_is_run() -> None:
    """Each Python block of the page is run by a test below."""
    assert PAGE.count("```python") == len(EXAMPLES)
    tests = Path(__file__).read_text()
    assert not [name for name, _ in EXAMPLES if f'"{name}"' not in tests]


@pytest.mark.parametrize("name", ["httpx", "requests", "google"])
def test_the_examples_for_threads(name: str, run: Run, api: API) -> None:
    """The examples get their answer, with a token."""
    assert run(name)["response"].status_code == 200
    assert served(api)


@pytest.mark.parametrize("name", ["httpx2", "aiohttp"])
def test_the_examples_for_loops(name: str, run: Run, api: API) -> None:
    """The examples get their answer, with a token."""
    answer = asyncio.run(run(name)["balance"]())
    assert getattr(answer, "status_code", answer) == 200
    assert served(api)


def test_the_example_for_azure(run: Run) -> None:
    """The credential gives a token."""
    names = run("azure")
    assert names["token"].token == names["source"].token().value


def test_the_example_for_msal(run: Run) -> None:
    """MSAL finds no entry in a new cache, and raises no error."""
    token_cache = run("msal")["token_cache"]
    assert list(token_cache.search("AccessToken")) == []


def test_the_recipe_for_django(run: Run, api: API, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of a real Django, sync and async, answer through its test clients; the second asks only the store."""
    import django
    from django.conf import settings
    from django.test import AsyncClient, Client, override_settings
    from django.urls import path

    names = run("django")
    urls = types.ModuleType("recipe_urls")
    urls.urlpatterns = [path("balance", names["balance"]), path("ready", names["ready"])]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recipe_urls", urls)
    if not settings.configured:  # another test of this process may have configured it
        settings.configure(SECRET_KEY="x")
    with override_settings(ROOT_URLCONF="recipe_urls", ALLOWED_HOSTS=["*"], MIDDLEWARE=[]):
        django.setup()
        with names["api"]():
            assert Client().get("/balance").json() == {"status": 200}
            assert served(api)
        assert asyncio.run(AsyncClient().get("/ready")).json() == {"provider": "qpay"}


def test_the_recipe_for_fastapi(run: Run, api: API) -> None:
    """A real FastAPI with its lifespan answers, with a token."""
    import httpx

    app = run("fastapi")["app"]

    async def scenario() -> Any:  # noqa: ANN401
        async with app.router.lifespan_context(app) as state:

            async def with_state(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
                await app({**scope, "state": dict(state)}, receive, send)

            transport = httpx.ASGITransport(with_state)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                return (await client.get("/balance")).json()

    assert asyncio.run(scenario()) == {"status": 200}
    assert served(api)


def test_the_recipe_for_celery(run: Run) -> None:
    """The task of a real Celery, called directly, has a token; test_prefork runs such a task in a worker."""
    assert isinstance(run("celery")["settle"]("order-1"), str)
