"""The service over HTTP: the shop's endpoint, the customer's page, QPay's callback."""

import hmac
import os
import re
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from decimal import Decimal
from hashlib import sha256
from importlib import resources
from typing import Annotated, Any, Final

from fastapi import FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute, APIRouter
from pydantic import BaseModel, Field, StringConstraints
from starlette.routing import Route

from order_service.checkout import CALLBACK, Checkout, log
from order_service.orders import Order, Orders, State
from order_service.settings import Settings
from tokencache import TokenCache, TokenCacheError
from tokencache_qpay import AsyncQPayClient, QPayError, QPayUnavailable, asgi_callback

PAGE: Final = resources.files("order_service").joinpath("page.html").read_text()
NO_STORE: Final = {"Cache-Control": "no-store"}
UNKNOWN: Final = "QPay may have made the invoice and did not say so; look there before asking for another one"
NOT_DONE: Final = "nothing was done; try again later"

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Wanted(BaseModel):
    """The shop's request. ``order`` is the shop's number of the order; each order has one invoice."""

    amount: Annotated[Decimal, Field(gt=0, max_digits=12, decimal_places=2, allow_inf_nan=False)]
    order: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=45)] | None = None


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the service. Raises ``ConfigurationError`` for a missing or invalid variable."""
    settings = settings or Settings.from_env()
    cache = TokenCache(settings.backend)
    client = AsyncQPayClient(cache.source("qpay"))
    confirming = AsyncQPayClient(cache.source("qpay"))  # its connections are not those of the shop's own calls
    orders = Orders(settings.orders)
    checkout = Checkout(client, orders, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await client.aclose()
        await confirming.aclose()
        await cache.aclose()
        orders.close()

    app = FastAPI(title="order service", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.include_router(_for_the_shop(checkout, settings))
    app.include_router(_for_customers(checkout, settings))
    app.router.routes.append(Route(CALLBACK, asgi_callback(confirming, checkout.paid, expected=checkout.expected)))
    return app


def _for_the_shop(checkout: Checkout, settings: Settings) -> APIRouter:
    """Return the routes for the shop; all require its token."""
    expected = f"Bearer {settings.shop_token}".encode()

    class ShopRoute(APIRoute):
        """A route that checks the token before it reads the request."""

        def get_route_handler(self) -> Handler:
            handle = super().get_route_handler()

            async def checked(request: Request) -> Response:
                if hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected):
                    return await handle(request)
                headers = {"WWW-Authenticate": "Bearer"}
                return _error(401, "unauthorized", "send the shop's token: Authorization: Bearer …", headers=headers)

            return checked

    router = APIRouter(route_class=ShopRoute)

    @router.post("/api/create-payment-session")
    async def create_payment_session(
        wanted: Wanted,
        response: Response,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> Any:  # noqa: ANN401  (FastAPI takes a document or a response)
        key = f"key:{idempotency_key}" if idempotency_key else None
        if wanted.order is not None:
            key = f"order:{wanted.order}"
        amount = Decimal(f"{wanted.amount.normalize():f}")  # 100 for 100.00 and 1E+2
        try:
            order, new = await checkout.open(key, amount, f"Order {wanted.order}" if wanted.order else "Order")
        except TokenCacheError as error:
            return _trouble(error)
        if order.state is State.UNKNOWN:
            return _error(502, "outcome_unknown", UNKNOWN, order=order.id)
        if order.state is State.FAILED:
            return _error(503, "unavailable", NOT_DONE, headers={"Retry-After": "10"})
        if order.state is State.OPENING:
            return _error(409, "in_progress", "the same request is being answered", headers={"Retry-After": "5"})
        if order.amount != amount:
            return _error(422, "key_reused", f"this order is over {order.amount}", order=order.id)
        response.status_code = 201 if new else 200
        response.headers.update(NO_STORE)
        return _session(order, settings)

    return router


def _for_customers(checkout: Checkout, settings: Settings) -> APIRouter:
    """Return the page and its calls. They need only the order's id, which cannot be guessed."""
    router = APIRouter()

    def answer(order: Order | None) -> JSONResponse:
        if order is None:
            return _error(404, "no_such_order", "there is no such order")
        return JSONResponse(_session(order, settings), headers=NO_STORE)

    @router.get("/api/payment-session/{order_id}")
    async def payment_session(order_id: str) -> Response:
        return answer(await checkout.get(order_id))

    @router.post("/api/payment-session/{order_id}/check")
    async def check(order_id: str) -> Response:
        try:
            return answer(await checkout.check(order_id))
        except TokenCacheError as error:
            return _trouble(error)

    @router.get("/pay/{order_id}")
    async def page(order_id: str) -> Response:
        if await checkout.get(order_id) is None:
            return PlainTextResponse("There is no such order.", 404)
        return HTMLResponse(PAGE, headers={**NO_STORE, **SAFETY})

    @router.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "worker": os.getpid()}

    return router


def _session(order: Order, settings: Settings) -> dict[str, Any]:
    """Return an order for the shop and the page; the amount is an exact text."""
    return {
        "order": order.id,
        "status": order.state.value,
        "invoice_id": order.invoice_id,
        "amount": str(order.amount),
        "currency": "MNT",
        "page": f"{settings.public_url}/pay/{order.id}",
        **order.shown,
    }


def _trouble(error: TokenCacheError) -> JSONResponse:
    """Return the answer if QPay did not do anything."""
    log.warning("%s", error)  # its text holds no secret
    if isinstance(error, QPayError) and not isinstance(error, QPayUnavailable):
        return _error(502, "refused", "QPay refused; the log says why", qpay=error.code)
    return _error(503, "unavailable", NOT_DONE, headers={"Retry-After": "10"})


def _error(status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:  # noqa: ANN401
    """Return an error; ``code`` is for programs, ``detail`` for people."""
    body = {"code": code, "detail": detail, **{name: value for name, value in more.items() if value is not None}}
    return JSONResponse(body, status, headers={**NO_STORE, **(headers or {})})


async def _invalid(_: Request, error: Any) -> Response:  # noqa: ANN401  (Starlette says Exception)
    """Describe the mistakes in a request without its values, which JSON may not be able to hold."""
    said = [f"{'.'.join(str(part) for part in each['loc'][1:])}: {each['msg']}" for each in error.errors()]
    return _error(422, "invalid", "; ".join(said))


def _policy(page: str) -> str:
    """Return the content security policy of the page: own style, script and pictures, calls to this service."""
    allowed = [f"{name}-src '{_hash(text)}'" for name in ("style", "script") for text in _parts(page, name)]
    rules = ["default-src 'none'", "img-src data:", "connect-src 'self'", *allowed]
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"])


def _parts(page: str, name: str) -> list[str]:
    return re.findall(f"<{name}>(.*?)</{name}>", page, re.DOTALL)


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


SAFETY: Final = {
    "Content-Security-Policy": _policy(PAGE),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
