"""``QPayClient`` and ``AsyncQPayClient``: clients of QPay's V2 API that obtain and renew the token.

Both have the operations of ``_calls.py`` as methods; ``_answers.py`` decides for both about answers and retries.

A request that is not idempotent and may have arrived is not sent again: the client raises
:class:`~tokencache_qpay.QPayOutcomeUnknown`. The only exception is a 401, which QPay sends before it does anything: the
client replays the request with another token.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import wraps
from http.cookiejar import CookieJar, DefaultCookiePolicy
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, Self, TypeVar

import httpx

from tokencache import TokenCache
from tokencache.integrations.httpx import TokenAuth
from tokencache.providers.transport import closing_handshake, new_client
from tokencache.shared import Shared
from tokencache.steps import adrive, drive
from tokencache_qpay import _calls
from tokencache_qpay._answers import exchange
from tokencache_qpay.errors import QPayUnavailable
from tokencache_qpay.models import Document
from tokencache_qpay.provider import PRODUCTION, QPayProvider, base_url_of
from tokencache_qpay.requests import reject

if TYPE_CHECKING:
    import asyncio
    import threading
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from types import TracebackType

    from tokencache import TokenSource
    from tokencache_qpay._answers import SendResult
    from tokencache_qpay._calls import Call, When
    from tokencache_qpay.models import ObjectType, Payment, PaymentCheck, PaymentList
    from tokencache_qpay.requests import Money

__all__ = ["AsyncQPayClient", "QPayClient"]

P = ParamSpec("P")
D = TypeVar("D", bound=Document)
M = TypeVar("M", bound="Callable[..., object]")

_TIMEOUT: Final = 15.0
_CHECKS: Final = 3
_LONGEST_WAIT: Final = 7 * 86_400.0


def _blocking(make: Callable[P, Call[D]]) -> Callable[Concatenate[QPayClient, P], D]:
    """Make a blocking method of an operation."""

    @wraps(make)
    def method(self: QPayClient, /, *args: P.args, **kwargs: P.kwargs) -> D:
        return self.send(make(*args, **kwargs))

    return _signed(method, make)


def _awaitable(make: Callable[P, Call[D]]) -> Callable[Concatenate[AsyncQPayClient, P], Coroutine[object, object, D]]:
    """Make an async method of an operation."""

    @wraps(make)
    async def method(self: AsyncQPayClient, /, *args: P.args, **kwargs: P.kwargs) -> D:
        return await self.send(make(*args, **kwargs))

    return _signed(method, make)


def _signed(method: M, make: Callable[..., object]) -> M:
    """Give a method the parameters of its operation after ``self``, for ``help``, test doubles and frameworks."""
    own = signature(make)
    itself = Parameter("self", Parameter.POSITIONAL_ONLY)
    method.__dict__["__signature__"] = own.replace(parameters=[itself, *own.parameters.values()])
    return method


class _Client(Shared):
    """The common part of both clients."""

    def __init__(self, source: TokenSource, *, base_url: str | None = None, timeout: float = _TIMEOUT) -> None:
        self.source = source
        self._base_url = base_url_of(base_url) if base_url is not None else source.issuer or PRODUCTION
        self._timeout = timeout
        self._auth = TokenAuth(source)

    @classmethod
    def from_env(cls, cache: TokenCache | None = None) -> Self:
        """Return a client with the merchant and the backend of the environment.

        See :meth:`QPayProvider.from_env <tokencache_qpay.QPayProvider.from_env>` and ``TokenCache`` for the variables.
        """
        return cls((cache or TokenCache()).source(QPayProvider.from_env()))

    def __repr__(self) -> str:
        """Return the address."""
        return f"{type(self).__name__}({self.source!r}, base_url={self._base_url!r})"


class QPayClient(_Client):
    """QPay's V2 API for threads: one client serves all threads of a process.

    ``source`` gives the token: ``TokenCache(…).source("qpay")``, or a source of a ``QPayProvider``. ``base_url``
    overrides the address of its provider. ``client`` is an ``httpx.Client`` to send with; ``close`` does not close it.
    ``timeout`` limits each phase of a request, in seconds.

    Each method raises :class:`~tokencache_qpay.QPayError` for QPay's errors, and the errors of ``source.token()``.
    """

    create_invoice = _blocking(_calls.create_invoice)
    get_invoice = _blocking(_calls.get_invoice)
    cancel_invoice = _blocking(_calls.cancel_invoice)
    get_payment = _blocking(_calls.get_payment)
    check_payment = _blocking(_calls.check_payment)
    list_payments = _blocking(_calls.list_payments)
    cancel_payment = _blocking(_calls.cancel_payment)
    refund_payment = _blocking(_calls.refund_payment)
    create_ebarimt = _blocking(_calls.create_ebarimt)
    get_ebarimt = _blocking(_calls.get_ebarimt)
    cancel_ebarimt = _blocking(_calls.cancel_ebarimt)
    create_ebarimt_v3 = _blocking(_calls.create_ebarimt_v3)
    cancel_ebarimt_v3 = _blocking(_calls.cancel_ebarimt_v3)
    get_subscription = _blocking(_calls.get_subscription)
    cancel_subscription = _blocking(_calls.cancel_subscription)

    def __init__(
        self,
        source: TokenSource,
        *,
        base_url: str | None = None,
        client: httpx.Client | None = None,
        timeout: float = _TIMEOUT,
    ) -> None:
        super().__init__(source, base_url=base_url, timeout=timeout)
        self._own = client is None
        self._client = client or new_client(httpx.Client, cookies=_no_cookies())

    def send(self, call: Call[D]) -> D:
        """Do an operation."""

        def perform(request: httpx.Request) -> SendResult:
            try:
                return self._client.send(request, auth=self._auth, follow_redirects=False)
            except httpx.HTTPError as error:
                return error

        return drive(exchange(call, self._base_url, self._timeout), perform)

    def payments(
        self,
        object_id: str,
        *,
        start_date: When,
        end_date: When,
        object_type: ObjectType | str = "INVOICE",
        page_limit: int = 100,
    ) -> Iterator[Payment]:
        """Yield all payments between two dates, page by page; the arguments are those of ``list_payments``."""
        pages = _Pages(page_limit)
        while pages.more:
            yield from pages.turn(
                self.list_payments(
                    object_id,
                    start_date=start_date,
                    end_date=end_date,
                    object_type=object_type,
                    page=pages.number,
                    page_limit=page_limit,
                )
            )

    def is_invoice_paid(self, invoice_id: str, amount: Money | None = None) -> bool:
        """Return whether an invoice is paid: by a payment that counts, and at least ``amount`` if given."""
        return self.check_payment(invoice_id).covers(amount)

    def wait_until_paid(
        self,
        invoice_id: str,
        called_back: threading.Event,
        *,
        timeout: float = 600.0,
        checks: int = _CHECKS,
        amount: Money | None = None,
    ) -> PaymentCheck:
        """Return the check that finds an invoice paid, or the last check after ``timeout`` seconds.

        QPay forbids polling, so this waits for its callback: set ``called_back`` when the callback arrives; the client
        clears it and checks. Callbacks get lost, so the client also checks ``checks`` times without one, the last time
        at the end. While QPay cannot answer, the wait continues.
        """
        wait = _Wait(timeout, checks)
        while True:
            called_back.wait(wait.pause())
            called_back.clear()
            try:
                found = self.check_payment(invoice_id)
            except QPayUnavailable:
                if wait.is_over():
                    raise
                continue
            if found.covers(amount) or wait.is_over():
                return found

    def close(self) -> None:
        """Close the connections; the source stays as it is."""
        if self._own:
            self._client.close()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class AsyncQPayClient(_Client):
    """QPay's V2 API for one event loop; the arguments and methods are those of :class:`QPayClient`."""

    create_invoice = _awaitable(_calls.create_invoice)
    get_invoice = _awaitable(_calls.get_invoice)
    cancel_invoice = _awaitable(_calls.cancel_invoice)
    get_payment = _awaitable(_calls.get_payment)
    check_payment = _awaitable(_calls.check_payment)
    list_payments = _awaitable(_calls.list_payments)
    cancel_payment = _awaitable(_calls.cancel_payment)
    refund_payment = _awaitable(_calls.refund_payment)
    create_ebarimt = _awaitable(_calls.create_ebarimt)
    get_ebarimt = _awaitable(_calls.get_ebarimt)
    cancel_ebarimt = _awaitable(_calls.cancel_ebarimt)
    create_ebarimt_v3 = _awaitable(_calls.create_ebarimt_v3)
    cancel_ebarimt_v3 = _awaitable(_calls.cancel_ebarimt_v3)
    get_subscription = _awaitable(_calls.get_subscription)
    cancel_subscription = _awaitable(_calls.cancel_subscription)

    def __init__(
        self,
        source: TokenSource,
        *,
        base_url: str | None = None,
        client: httpx.AsyncClient | None = None,
        timeout: float = _TIMEOUT,
    ) -> None:
        super().__init__(source, base_url=base_url, timeout=timeout)
        self._own = client is None
        self._client = client or new_client(httpx.AsyncClient, cookies=_no_cookies())

    async def send(self, call: Call[D]) -> D:
        """Do an operation."""

        async def perform(request: httpx.Request) -> SendResult:
            request.extensions["trace"] = closing_handshake()
            try:
                return await self._client.send(request, auth=self._auth, follow_redirects=False)
            except httpx.HTTPError as error:
                return error

        return await adrive(exchange(call, self._base_url, self._timeout), perform)

    async def payments(
        self,
        object_id: str,
        *,
        start_date: When,
        end_date: When,
        object_type: ObjectType | str = "INVOICE",
        page_limit: int = 100,
    ) -> AsyncIterator[Payment]:
        """Yield all payments between two dates, page by page; the arguments are those of ``list_payments``."""
        pages = _Pages(page_limit)
        while pages.more:
            page = await self.list_payments(
                object_id,
                start_date=start_date,
                end_date=end_date,
                object_type=object_type,
                page=pages.number,
                page_limit=page_limit,
            )
            for payment in pages.turn(page):
                yield payment

    async def is_invoice_paid(self, invoice_id: str, amount: Money | None = None) -> bool:
        """Return whether an invoice is paid: by a payment that counts, and at least ``amount`` where that is given."""
        return (await self.check_payment(invoice_id)).covers(amount)

    async def wait_until_paid(
        self,
        invoice_id: str,
        called_back: asyncio.Event,
        *,
        timeout: float = 600.0,  # noqa: ASYNC109  (the end of the waiting, not of the task)
        checks: int = _CHECKS,
        amount: Money | None = None,
    ) -> PaymentCheck:
        """Return the check that finds an invoice paid, or the last one; see :meth:`QPayClient.wait_until_paid`."""
        import asyncio

        wait = _Wait(timeout, checks)
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(called_back.wait(), wait.pause())
            called_back.clear()
            try:
                found = await self.check_payment(invoice_id)
            except QPayUnavailable:
                if wait.is_over():
                    raise
                continue
            if found.covers(amount) or wait.is_over():
                return found

    async def aclose(self) -> None:
        """Close the connections; the source stays as it is."""
        if self._own:
            await self._client.aclose()

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()


class _Pages:
    """The position of a reader of pages."""

    def __init__(self, limit: int) -> None:
        self.number = 1
        self.more = True
        self._limit = limit
        self._last: tuple[Payment, ...] = ()

    def turn(self, page: PaymentList) -> tuple[Payment, ...]:
        """Return the rows of a page; a full page has a successor, as the meaning of ``count`` is not documented."""
        if page.rows and page.rows == self._last:  # else a server that ignores the number would be read for ever
            message = f"[qpay] list_payments: page {self.number} is page {self.number - 1} again; ask for shorter spans"
            raise QPayUnavailable(message)
        self.number += 1
        self.more = len(page.rows) >= self._limit
        self._last = page.rows
        return page.rows


class _Wait:
    """The schedule of checks without a callback: at growing intervals, the last one at the end."""

    def __init__(self, timeout: float, checks: int) -> None:
        if not 0 <= timeout <= _LONGEST_WAIT:
            reject("timeout", "give seconds, at most one week")
        now = time.monotonic()
        times = max(1, checks)
        self._due = [now + timeout * (number / times) ** 2 for number in range(1, times + 1)]

    def pause(self) -> float:
        """Return how long to wait for a callback."""
        return max(0.0, self._due[0] - time.monotonic())

    def is_over(self) -> bool:
        """Return whether the last check was the final one; called after each check."""
        while self._due and self._due[0] <= time.monotonic():
            del self._due[0]
        return not self._due


def _no_cookies() -> CookieJar:
    """Return a jar that accepts no cookie."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))
