"""``FakeQPay``: QPay's V2 API on a loopback port, with settings for faults."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from base64 import b64decode
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

from tokencache.testing.loopback import LoopbackServer, Reply, Reset
from tokencache_qpay.testing._forms import Refusal, answer, refusal
from tokencache_qpay.testing._sessions import Sessions
from tokencache_qpay.testing._shop import Shop

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from types import TracebackType

    from tokencache.testing.loopback import Asked
    from tokencache_qpay.testing._sessions import Expires
    from tokencache_qpay.testing._shop import PaymentType

__all__ = ["FakeQPay"]

Where: TypeAlias = Literal["token", "shop", "all"]

COOKIE: Final = "qpay_merchant_openapi.sid"
_TOKEN_CALLS: Final = frozenset({"/v2/auth/token", "/v2/auth/refresh"})
_HTML: Final = (
    b"<html>\r\n<head><title>%d</title></head>\r\n<body><center><h1>%d</h1></center><hr><center>nginx</center>\r\n"
)
_WRONG_PASSWORD: Final = "Нэвтрэх нэр эсвэл нууц үг буруу байна"  # noqa: RUF001  Mongolian


@dataclass(frozen=True, slots=True)
class _Fault:
    """The fault of a request: what it gets instead of its answer."""

    where: Where
    deed: Reply | Literal["hang", "reset"]


class FakeQPay:
    """QPay's API on a free port of 127.0.0.1; a context manager.

    Settings, which may change while it runs:

    ``credentials``     user to password; at first the shared sandbox merchant
    ``expires``         the form of ``expires_in``: ``"epoch"`` (as QPay), ``"duration"``, or a function of the server's
                        time and ``lifetime``
    ``lifetime``        how long a token lives, in seconds; with ``"epoch"`` its end falls on a whole second
    ``latency``, ``shop_latency``   seconds before the answer to a token call, to any other call
    ``one_session``     a new login ends all earlier ones
    ``clock_offset``    seconds that the server's clock, and its ``Date``, are ahead of ours
    ``on_login``        called in the server's thread when a token call has arrived

    Counters: ``requests`` (all), ``logins`` and ``refreshes`` (token calls, also failed ones), ``issued`` (tokens
    issued), ``most_logins_at_once``, ``cookies_received`` (requests that carried a cookie).
    """

    def __init__(
        self,
        *,
        credentials: Mapping[str, str] | None = None,
        expires: Expires = "epoch",
        lifetime: float = 86_400.0,
        latency: float = 0.0,
        shop_latency: float = 0.0,
        one_session: bool = False,
        clock_offset: float = 0.0,
        on_login: Callable[[], None] | None = None,
    ) -> None:
        self.credentials = {"TEST_MERCHANT": "123456"} if credentials is None else dict(credentials)
        self.expires: Expires = expires
        self.lifetime = lifetime
        self.latency = latency
        self.shop_latency = shop_latency
        self.one_session = one_session
        self.clock_offset = clock_offset
        self.on_login = on_login
        self.requests = self.logins = self.refreshes = self.issued = 0
        self.most_logins_at_once = self.cookies_received = 0
        self.login_arrived = threading.Event()
        self._logins_now = 0
        self._arrivals = threading.Condition()  # guards logins and refreshes
        self._faults: deque[_Fault] = deque()
        self._lasting: _Fault | None = None
        self._gate = asyncio.Event()
        self._gate.set()
        self._sessions = Sessions()
        self._shop = Shop()
        self._server = LoopbackServer(self._handle)

    # --- running ------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The base URL, without ``/v2``."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables of a provider for this server and its first merchant."""
        user, password = next(iter(self.credentials.items()))
        return {"QPAY_CLIENT_ID": user, "QPAY_CLIENT_SECRET": password, "QPAY_BASE_URL": f"{self.url}/v2"}

    def start(self) -> Self:
        """Listen on a free port."""
        self._server.start()
        return self

    def stop(self) -> None:
        """Close all connections and end the thread. May be called twice."""
        self._server.stop()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    # --- for tests ----------------------------------------------------------------------------------------------

    def revoke(self, token: str | None = None) -> None:
        """End the session of one access token, or all sessions."""
        self._sessions.revoke(token)

    def pay(self, invoice_id: str, amount: float | str | None = None, *, kind: PaymentType = "P2P") -> str:
        """Pay an invoice, by default in full, and return the payment's id."""
        return self._shop.pay(invoice_id, amount, kind)

    def callback_of(self, payment_id: str) -> str:
        """Return the address that QPay calls for a payment: the invoice's, with the payment's id appended."""
        return self._shop.callback_of(payment_id)

    def fail_next(
        self,
        count: int = 1,
        *,
        status: int = 500,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        where: Where = "token",
    ) -> None:
        """Answer the next ``count`` requests with an error; ``body`` is bytes, or a value to send as JSON."""
        self._faults.extend([_Fault(where, _error(status, body, headers or {}))] * count)

    def html_next(self, count: int = 1, *, status: int = 502, where: Where = "token") -> None:
        """Answer the next ``count`` requests with an HTML page, like the proxy in front of QPay."""
        self._faults.extend([_Fault(where, _page(status))] * count)

    def hang_next(self, count: int = 1, *, where: Where = "token") -> None:
        """Leave the next ``count`` requests without an answer, for ever."""
        self._faults.extend([_Fault(where, "hang")] * count)

    def reset_next(self, count: int = 1, *, where: Where = "token") -> None:
        """Reset the connection of the next ``count`` requests instead of answering."""
        self._faults.extend([_Fault(where, "reset")] * count)

    @contextmanager
    def fail_while(
        self,
        *,
        status: int = 500,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        where: Where = "token",
    ) -> Generator[None]:
        """Answer all requests with an error until the block ends."""
        self._lasting = _Fault(where, _error(status, body, headers or {}))
        try:
            yield
        finally:
            self._lasting = None

    @contextmanager
    def hold(self) -> Generator[None]:
        """Delay the answers to token calls until the block ends. The requests arrive and are counted."""
        self._on_loop(self._gate.clear)
        try:
            yield
        finally:
            self._on_loop(self._gate.set)

    def wait_for_logins(self, count: int, timeout: float = 30.0) -> None:
        """Return when ``count`` token calls have arrived in all. Raises ``TimeoutError``."""
        with self._arrivals:
            if not self._arrivals.wait_for(lambda: self.logins + self.refreshes >= count, timeout):
                message = f"{self.logins + self.refreshes} of {count} token calls arrived within {timeout:g} s"
                raise TimeoutError(message)

    # --- answering ----------------------------------------------------------------------------------------------

    async def _handle(self, asked: Asked) -> Reply:
        """Count a request, apply its fault or make its answer, and add the headers."""
        self.requests += 1
        self.cookies_received += "cookie" in asked.headers
        path = asked.path.partition("?")[0]
        if path in _TOKEN_CALLS:
            reply = await self._token_call(asked, path)
        else:
            await asyncio.sleep(self.shop_latency)
            reply = await self._fault("shop") or self._shop_call(asked, path)
        date = ("Date", formatdate(self._now(), usegmt=True))
        return Reply(reply.status, reply.body, (date, ("Server", "nginx"), *reply.headers))

    async def _token_call(self, asked: Asked, path: str) -> Reply:
        with self._counted(path):
            await asyncio.sleep(self.latency)
            await self._gate.wait()
            return await self._fault("token") or self._token(asked, path)

    @contextmanager
    def _counted(self, path: str) -> Generator[None]:
        """Count a token call, and the most concurrent ones."""
        with self._arrivals:
            if path.endswith("/refresh"):
                self.refreshes += 1
            else:
                self.logins += 1
            self._arrivals.notify_all()
        self._logins_now += 1
        self.most_logins_at_once = max(self.most_logins_at_once, self._logins_now)
        self.login_arrived.set()
        if self.on_login is not None:
            self.on_login()
        try:
            yield
        finally:
            self._logins_now -= 1

    def _token(self, asked: Asked, path: str) -> Reply:
        """Answer a login or a refresh."""
        if asked.method != "POST":
            return _page(404)
        allowed = self._may_refresh if path.endswith("/refresh") else self._may_log_in
        refused = allowed(asked.headers.get("authorization", ""))
        if refused is not None:
            return refused
        document = self._sessions.open(self._now(), self.lifetime, self.expires, only=self.one_session)
        self.issued += 1
        reply = answer(document)
        cookie = f"{COOKIE}=s%3A{secrets.token_urlsafe(24)}; Path=/; HttpOnly"
        return Reply(reply.status, reply.body, (*reply.headers, ("Set-Cookie", cookie)))

    def _may_log_in(self, authorization: str) -> Reply | None:
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return _NO_CREDENTIALS
        try:
            user, _, password = b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            return _NO_CREDENTIALS
        return (
            None if self.credentials.get(user) == password else refusal(401, "AUTHENTICATION_FAILED", _WRONG_PASSWORD)
        )

    def _may_refresh(self, authorization: str) -> Reply | None:
        scheme, _, refresh_token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not self._sessions.spend(refresh_token, self._now()):
            return _NO_CREDENTIALS
        return None

    def _shop_call(self, asked: Asked, path: str) -> Reply:
        scheme, _, token = asked.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not self._sessions.holds(token, self._now()):
            return _NO_CREDENTIALS
        try:
            reply = self._shop.serve(asked.method, path.removeprefix("/v2"), asked.body)
        except Refusal as error:
            return error.reply
        return reply or _page(404)

    async def _fault(self, here: Where) -> Reply | None:
        """Apply the planned fault of this request; return ``None`` without one."""
        deed = self._due(here)
        if deed == "reset":
            raise Reset
        if deed == "hang":
            await asyncio.Event().wait()
        return deed if isinstance(deed, Reply) else None

    def _due(self, here: Where) -> Reply | Literal["hang", "reset"] | None:
        if self._lasting is not None and self._lasting.where in (here, "all"):
            return self._lasting.deed
        for fault in self._faults:
            if fault.where in (here, "all"):
                self._faults.remove(fault)
                return fault.deed
        return None

    def _now(self) -> float:
        return time.time() + self.clock_offset

    def _on_loop(self, action: Callable[[], None]) -> None:
        """Run an action on the server's loop, if it runs, and wait for its end."""

        async def act() -> None:
            action()

        loop = self._server.loop
        if loop is None:
            action()
        else:
            asyncio.run_coroutine_threadsafe(act(), loop).result()


_NO_CREDENTIALS: Final = refusal(401, "NO_CREDENDIALS", "NO_CREDENDIALS")  # misspelled, as by QPay


def _error(status: int, body: object, headers: Mapping[str, str]) -> Reply:
    """Return an error answer; without a body, QPay's own for a busy system."""
    if isinstance(body, bytes):
        return Reply(status, body, tuple(headers.items()))
    reply = refusal(status, "SYSTEM_BUSY") if body is None else answer(body, status)
    return Reply(status, reply.body, (*reply.headers, *headers.items()))


def _page(status: int) -> Reply:
    """Return an error page in HTML."""
    return Reply(status, _HTML % (status, status), (("Content-Type", "text/html"),))
