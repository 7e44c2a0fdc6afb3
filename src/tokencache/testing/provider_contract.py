"""The contract of HTTP providers: each law of :class:`tokencache.ports.TokenProvider` written once, for both halves.

A provider passes when a class like this passes::

    class TestMyProvider(ProviderContract):
        def make_provider(self, server, secret):
            return MyProvider(server.url, client_id="shop", client_secret=secret)

        def make_others(self, server, secret):
            return {"scope": MyProvider(server.url, client_id="shop", client_secret=secret, scope="orders")}

pytest runs the laws on threads and on event loops, against a real server on loopback
(:class:`~tokencache.testing.token_server.TokenServer`). For a server that does not speak OAuth, override
``token_reply``, ``error_reply`` and ``rejecting``.
"""

# ruff: noqa: S101 - a law is an assertion

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import replace
from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest

from tokencache._engine.drivers import _async_half
from tokencache._keys import fingerprint, quick_fingerprint
from tokencache.errors import ProviderError, ProviderRejected, ProviderUnavailable
from tokencache.testing._provider_laws import ProviderLaws
from tokencache.testing.token_server import Reply, TokenServer, reset, silent

if TYPE_CHECKING:
    from tokencache.ports import TokenProvider
    from tokencache.testing.token_server import Asked
    from tokencache.token import Token

__all__ = ["ProviderContract"]

_OTHER_SECRET = "another/planted+secret"
_PAUSE = 120
_LATE = 5.0


class ProviderContract(ProviderLaws):
    """All laws. A subclass whose name begins with ``Test`` makes a provider."""

    # --- tokens

    def test_both_halves_give_the_same_token(self, server: TokenServer) -> None:
        """Threads and event loops send the same request, and return the server's token with the same fields."""
        tokens: dict[str, Token] = {}
        for half in ("sync", "async"):
            server.answer(self.token_reply("planted-token-1", 3600))
            tokens[half] = self.fetch(self.make_provider(server, self.secret), half)
        one, other = tokens["sync"], tokens["async"]
        assert one.value == other.value == "planted-token-1"
        assert (one.token_type, one.scope, one.extra) == (other.token_type, other.scope, other.extra)
        sent, sent_too = server.requests
        assert (sent.method, sent.path) == (sent_too.method, sent_too.path)

    def test_each_fetch_asks_the_server(self, server: TokenServer, half: str) -> None:
        """A provider does not keep tokens: a second fetch asks the server again, even if the first is known."""
        provider = self.make_provider(server, self.secret)
        first = self.fetch(provider, half)
        assert self.fetch(provider, half, previous=first).value == "planted-token-2"

    @pytest.mark.parametrize("lifetime", [90, 3600, 7200])
    def test_the_lifetime_is_that_of_the_answer(self, server: TokenServer, half: str, lifetime: int) -> None:
        """INV-1: the server's lifetime counts from before the request; the token ends then, and not much earlier."""
        server.answer(self.token_reply("planted-token-1", lifetime))
        before = time.time()
        token = self.fetch(self.make_provider(server, self.secret), half)
        assert token.expires_at <= server.came_at[-1] + lifetime
        assert token.expires_at >= before + lifetime - 2.0  # a server's clock may show whole seconds

    # --- identity

    def test_the_identity_is_the_same_for_equal_settings(self, server: TokenServer) -> None:
        """INV-2: two processes with the same settings name the same record, before and after a fetch."""
        one, other = (self.make_provider(server, self.secret) for _ in range(2))
        named = fingerprint(one.name, one.identity())
        assert fingerprint(other.name, other.identity()) == named
        self.fetch(one, "sync")
        assert quick_fingerprint(one.name, one.identity()) == quick_fingerprint(other.name, other.identity())

    def test_the_identity_is_the_same_in_another_process(self, server: TokenServer) -> None:
        """INV-2: the identity depends on no process id, memory address or order of a set, so a fleet shares it."""
        if not self.portable:
            pytest.skip("providers of this class cannot be made in another process")
        provider = self.make_provider(server, self.secret)
        assert self.identity_elsewhere(server) == fingerprint(provider.name, provider.identity())

    def test_whatever_makes_another_token_makes_another_identity(self, server: TokenServer) -> None:
        """INV-10: another credential, another server, and each of ``make_others`` has a record of its own."""
        with TokenServer() as elsewhere:
            providers: dict[str, TokenProvider] = {
                "itself": self.make_provider(server, self.secret),
                "another secret": self.make_provider(server, _OTHER_SECRET),
                "another server": self.make_provider(elsewhere, self.secret),
                **self.make_others(server, self.secret),
            }
            seen: dict[bytes, str] = {}
            for what, provider in providers.items():
                twin = seen.setdefault(quick_fingerprint("provider", provider.identity()), what)
                assert twin == what, f"{what!r} has the identity of {twin!r}: they would share a token"

    def test_the_identity_shows_no_secret(self, server: TokenServer) -> None:
        """INV-9: credentials are in the identity as ``Secret``, and nowhere else in it."""
        self.require_clean(repr(self.make_provider(server, self.secret).identity()), "identity", server)

    # --- no secret leaves

    def test_the_provider_shows_no_secret(self, server: TokenServer) -> None:
        """INV-9: ``repr``, ``str`` and the name of a provider do not show its credential."""
        provider = self.make_provider(server, self.secret)
        self.fetch(provider, "sync")
        for text in (repr(provider), str(provider), provider.name):
            self.require_clean(text, "text of the provider", server)

    def test_the_log_shows_no_secret(self, server: TokenServer, half: str, caplog: pytest.LogCaptureFixture) -> None:
        """INV-9: neither a good fetch nor a failed one logs a secret or a token, at any level."""
        with caplog.at_level(logging.DEBUG):
            self.fetch(self.make_provider(server, self.secret), half)
            self.fails(ProviderUnavailable, server, half, self.error_reply(500, self.secret))
        self.require_clean(caplog.text, "log", server)

    def test_a_secret_that_the_server_repeats_stays_hidden(self, server: TokenServer, half: str) -> None:
        """INV-9: if a server repeats the credential in its refusal, no error or log quotes it."""

        async def tell(asked: object) -> Reply:
            sent = server.requests[-1].headers.get("authorization", "")
            del asked
            return self.error_reply(self.rejecting[0], f"{self.secret} and {sent} are unknown")

        self.fails(ProviderRejected, server, half, tell)

    # --- refusals

    def test_a_refusal_is_permanent(self, server: TokenServer, half: str) -> None:
        """INV-7: a permanent refusal raises ``ProviderRejected`` with the status, after one request."""
        for status in self.rejecting:
            server.requests.clear()
            error = self.fails(ProviderRejected, server, half, self.error_reply(status, "unknown client"))
            assert error.status == status
            assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_pause_in_seconds_is_handed_on(self, server: TokenServer, half: str, status: int) -> None:
        """INV-7: the seconds of ``Retry-After`` become ``retry_at``, and the fleet waits that long."""
        before = time.time()
        refused = self.error_reply(status, "slow down", {"Retry-After": str(_PAUSE)})
        error = self.fails(ProviderUnavailable, server, half, refused)
        assert error.retry_at is not None, "Retry-After is lost"
        assert before + _PAUSE <= error.retry_at <= time.time() + _PAUSE

    @pytest.mark.parametrize("ahead", [0, 3600, -3600], ids=["in time", "an hour ahead", "an hour behind"])
    def test_a_pause_until_a_date_is_handed_on(self, server: TokenServer, half: str, ahead: int) -> None:
        """INV-7: a date in ``Retry-After`` is compared with the server's ``Date``, so its clock may be wrong."""
        before = time.time()
        dates = {
            "Date": formatdate(before + ahead, usegmt=True),
            "Retry-After": formatdate(before + ahead + _PAUSE, usegmt=True),
        }
        error = self.fails(ProviderUnavailable, server, half, self.error_reply(429, "slow down", dates))
        assert error.retry_at is not None, "Retry-After is lost"
        assert before + _PAUSE - 1 <= error.retry_at <= time.time() + _PAUSE + 1  # dates hold whole seconds

    # --- failures

    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    def test_a_failing_server_is_unavailable(self, server: TokenServer, half: str, status: int) -> None:
        """A status of 500 and above is transient, with any body."""
        for reply in (self.error_reply(status, "broken"), Reply(status), _page(status, self.secret)):
            self.fails(ProviderUnavailable, server, half, reply)

    def test_a_token_in_an_error_is_not_taken(self, server: TokenServer, half: str) -> None:
        """A token in the body of an error is neither used nor quoted."""
        for status in (500, 503, *self.rejecting):
            self.fails(ProviderError, server, half, replace(self.token_reply("planted-token-1", 60), status=status))

    @pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"planted-token-1"', b"{}", b'{"access_token": null}'])
    def test_an_answer_without_a_token_is_unavailable(self, server: TokenServer, half: str, body: bytes) -> None:
        """A success without a token raises ``ProviderUnavailable``, never another exception."""
        self.fails(ProviderUnavailable, server, half, Reply(200, body, (("Content-Type", "application/json"),)))

    def test_a_page_is_unavailable(self, server: TokenServer, half: str) -> None:
        """A page of HTML instead of a token, as proxies send it, is a failure and is not quoted."""
        self.fails(ProviderUnavailable, server, half, _page(200, self.secret))

    def test_half_a_document_is_unavailable(self, server: TokenServer, half: str) -> None:
        """Incomplete JSON is a failure; the part of a token in it is neither used nor quoted."""
        whole = self.token_reply("planted-token-1", 3600)
        self.fails(ProviderUnavailable, server, half, replace(whole, body=whole.body[: len(whole.body) // 2]))

    def test_a_body_that_is_cut_off_is_unavailable(self, server: TokenServer, half: str) -> None:
        """A connection that breaks within the body is a failure, and a part of a token is not used."""
        self.fails(ProviderUnavailable, server, half, replace(self.token_reply("planted-token-1", 3600), cut=True))

    def test_a_broken_connection_is_unavailable(self, server: TokenServer, half: str) -> None:
        """A connection that is reset before the answer is a failure."""
        self.fails(ProviderUnavailable, server, half, reset)

    def test_a_server_that_does_not_listen_is_unavailable(self, server: TokenServer, half: str) -> None:
        """A server that does not listen is a failure."""
        server.stop()
        self.fails(ProviderUnavailable, server, half)

    def test_a_silent_server_is_given_up_by_the_deadline(self, server: TokenServer, half: str) -> None:
        """INV-8: a fetch ends by its deadline, also if the provider's time-out is longer; a late token is not used."""

        async def late(_: Asked) -> Reply:
            await asyncio.sleep(_LATE)
            return self.token_reply("planted-token-1", 3600)

        self.fails(ProviderUnavailable, server, half, late, timeout=0.3)

    def test_a_cancelled_fetch_leaves_nothing_behind(self, server: TokenServer) -> None:
        """INV-8: a cancelled ``afetch`` raises ``CancelledError`` and leaves no task; the next fetch works."""
        provider = self.make_provider(server, self.secret)
        if not hasattr(provider, "afetch"):
            pytest.skip("the provider has no half for event loops that could be cancelled")

        async def cancel() -> None:
            fetching = asyncio.ensure_future(_async_half(provider)(self.context()))
            async with asyncio.timeout(self.patience):
                while not (server.requests or fetching.done()):  # noqa: ASYNC110  (the server is on a thread)
                    await asyncio.sleep(0.01)
            fetching.cancel()
            await asyncio.wait([fetching], timeout=self.patience)
            assert fetching.cancelled(), "the fetch did not end as cancelled"
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}, "the fetch left a task behind"

        server.answer(silent)
        asyncio.run(cancel())
        server.answer(self.token_reply("planted-token-1", 3600))
        assert self.fetch(provider, "async").value == "planted-token-1"

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_takes_no_credential_along(self, server: TokenServer, half: str, status: int) -> None:
        """INV-9: a redirect is not followed: no other server gets the credential or issues the token."""
        with TokenServer() as elsewhere:
            elsewhere.answer(self.token_reply("planted-token-elsewhere", 3600))
            moved = Reply(status, json.dumps({}).encode(), (("Location", f"{elsewhere.url}/token"),))
            self.fails(ProviderUnavailable, server, half, moved)
            assert elsewhere.requests == [], "the redirect was followed"


def _page(status: int, text: str) -> Reply:
    """Return an HTML page."""
    return Reply(status, f"<html><body>{text} planted-token-1</body></html>".encode(), (("Content-Type", "text/html"),))
