"""What the laws of providers share: a provider at a server of its own, ways to ask it, and checks for secrets."""

# ruff: noqa: S101 - a law is an assertion

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import subprocess
import sys
import time
import traceback
from base64 import b64encode
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, quote_plus

import pytest

from tokencache._engine.drivers import _async_half, _sync_half
from tokencache._keys import fingerprint
from tokencache.errors import ProviderError
from tokencache.ports import FetchContext
from tokencache.testing.token_server import TokenServer, json_reply

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from tokencache.ports import TokenProvider
    from tokencache.testing.token_server import Answer, Reply
    from tokencache.token import Token

Error = TypeVar("Error", bound=ProviderError)


class ProviderLaws:
    """The ground for laws: a subclass says how to make a provider, and how its server talks."""

    secret: str = "planted/secret+of=the&client"
    """The credential that :meth:`make_provider` is given; the laws look for it in everything that can be read."""
    rejecting: tuple[int, ...] = (400, 401)
    """The statuses by which the server says that asking again does not help."""
    portable: bool = True
    """Whether another process makes the same providers of this class: its file is loaded there, with no fixture."""
    patience: float = 30.0
    """How long a law waits for what has to happen."""

    def make_provider(self, server: TokenServer, secret: str) -> TokenProvider:
        """Return a provider that asks ``server`` (at ``server.url``) and proves itself by ``secret``.

        Called twice with the same arguments it returns two providers of the same tokens.
        """
        raise NotImplementedError

    def make_others(self, server: TokenServer, secret: str) -> Mapping[str, TokenProvider]:
        """Return providers whose tokens are not this one's, by what makes the difference: scope, audience, tenant."""
        del server, secret
        return {}

    def token_reply(self, value: str, lifetime: float) -> Reply:
        """Return the server's answer that gives the token ``value`` for ``lifetime`` seconds."""
        return json_reply({"access_token": value, "token_type": "Bearer", "expires_in": lifetime})

    def error_reply(self, status: int, said: str, headers: Mapping[str, str] | None = None) -> Reply:
        """Return the server's answer that gives no token, with a text that it says about that."""
        return json_reply({"error": "invalid_client", "error_description": said}, status, headers)

    # --- what the laws use

    @pytest.fixture
    def server(self) -> Generator[TokenServer]:
        """Give a token server that gives tokens of an hour."""
        with TokenServer() as server:
            server.answer(self.token_reply("planted-token-1", 3600), self.token_reply("planted-token-2", 3600))
            yield server

    @pytest.fixture(params=["sync", "async"])
    def half(self, request: pytest.FixtureRequest) -> str:
        """Give the name of one half."""
        return str(request.param)

    def fetch(
        self, provider: TokenProvider, half: str, *, timeout: float | None = None, previous: Token | None = None
    ) -> Token:
        """Fetch once by one half; if the provider does not have it, make it from the other half, as the engine does."""
        context = self.context(timeout=timeout, previous=previous)
        if half == "sync":
            return _sync_half(provider)(context)
        return asyncio.run(_async_half(provider)(context))

    def identity_elsewhere(self, server: TokenServer) -> str:
        """Return the fingerprint that another process has for the same settings; it hashes texts otherwise."""
        own = type(self)
        seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        ran = subprocess.run(  # noqa: S603 - this interpreter, with arguments of our own
            [sys.executable, "-c", _ELSEWHERE, inspect.getfile(own), own.__qualname__, server.url.rpartition(":")[2]],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.require_clean(ran.stdout + ran.stderr, "output of another process", server)
        assert ran.returncode == 0, f"no provider could be made in another process (see `portable`): {ran.stderr}"
        return ran.stdout.strip()

    def context(self, *, timeout: float | None = None, previous: Token | None = None) -> FetchContext:
        """Return what a fetch that begins now is told."""
        deadline = time.monotonic() + (self.patience if timeout is None else timeout)
        return FetchContext(previous, deadline, "refresh" if previous else "cold", time.monotonic)

    def fails(
        self, kind: type[Error], server: TokenServer, half: str, *answers: Answer, timeout: float | None = None
    ) -> Error:
        """Return the error that a fetch ends with when the server answers so; no secret is in it or behind it."""
        server.answer(*answers)
        provider = self.make_provider(server, self.secret)
        with pytest.raises(ProviderError) as caught:
            self.fetch(provider, half, timeout=timeout)
        assert isinstance(caught.value, kind), f"expected {kind.__name__}, got {type(caught.value).__name__}"
        for error in _chain(caught.value):
            for text in (str(error), repr(error), repr(vars(error)), "".join(traceback.format_exception(error))):
                self.require_clean(text, f"{type(error).__name__} of the fetch", server)
        return caught.value

    def require_clean(self, text: str, where: str, server: TokenServer) -> None:
        """Assert that a text holds neither the secret in any spelling, nor what was sent to prove it, nor a token."""
        for hidden in self._hidden(server):
            assert hidden not in text, f"INV-9: a secret is in the {where}"

    def _hidden(self, server: TokenServer) -> Iterator[str]:
        """Yield everything that must not be read."""
        yield from {self.secret, quote(self.secret), quote(self.secret, ""), quote_plus(self.secret)}
        yield b64encode(self.secret.encode()).decode()
        yield "planted-token"
        for asked in server.requests:
            kind, _, credential = asked.headers.get("authorization", "").partition(" ")
            if credential or kind:
                yield credential or kind


_ELSEWHERE = "import sys; from tokencache.testing._provider_laws import tell_identity; tell_identity(*sys.argv[1:])"


def tell_identity(file: str, name: str, port: str) -> None:
    """Print the fingerprint of the provider that the class of laws ``name`` in ``file`` makes."""
    spec = importlib.util.spec_from_file_location("_laws_elsewhere", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    laws: ProviderLaws = attrgetter(name)(module)()
    provider = laws.make_provider(TokenServer(int(port)), laws.secret)
    sys.stdout.write(fingerprint(provider.name, provider.identity()))


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and all that led to it, shown or not."""
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and each not in seen:
            seen.append(each)
            left += [each.__cause__, each.__context__]
    return seen
