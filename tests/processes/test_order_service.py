"""The example `order_service`, in this process: each endpoint, one invoice per order, and no secret in any output."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
import threading
from base64 import b64decode
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from order_service import __main__, app, checkout, orders
from order_service.orders import Orders, State
from order_service.settings import REQUIRED, Settings

from tokencache import ConfigurationError
from tokencache_qpay.models import CreatedInvoice, read

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import httpx
    from order_shop import Shop

EXAMPLE = Path(__file__).parents[2] / "examples" / "order_service"
CREATE = "/api/create-payment-session"
SHOP_TOKEN = "the shop's own token, not to be seen"  # as in order_shop
ENVIRONMENT = dict.fromkeys(REQUIRED, "x" * 16) | {"PUBLIC_URL": "https://shop.test/"}


def serve(shop: Shop, scenario: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Run a scenario against the service."""

    async def run() -> None:
        async with shop.open() as http:
            await scenario(http)

    asyncio.run(run())


async def ordered(http: httpx.AsyncClient, amount: object = 100, **headers: str) -> dict[str, Any]:
    """Place an order."""
    answer = await http.post(CREATE, json={"amount": amount}, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def called_back(http: httpx.AsyncClient, shop: Shop, payment_id: str) -> tuple[int, str]:
    """Call the service as QPay does."""
    answer = await http.get(shop.qpay.callback_of(payment_id), headers={"Authorization": ""})
    return answer.status_code, answer.text


def as_bytes(text: str | bytes) -> bytes:
    """Return a header's value as it is sent."""
    return text.encode() if isinstance(text, str) else text


def test_a_session_is_all_that_is_needed_to_pay(shop: Shop) -> None:
    """`{"amount": 100}` makes one invoice and returns order, QR code, links and page; the status returns the same."""

    async def scenario(http: httpx.AsyncClient) -> None:
        answer = await http.post(CREATE, json={"amount": 100})
        session = answer.json()
        assert (answer.status_code, answer.headers["Cache-Control"]) == (201, "no-store")
        assert (session["status"], session["amount"], session["currency"]) == ("open", "100", "MNT")
        assert session["page"] == f"http://shop.test/pay/{session['order']}"
        kind, _, picture = session["qr_image"].partition(",")
        assert kind == "data:image/png;base64"
        assert b64decode(picture).startswith(b"\x89PNG")
        assert session["banks"][0]["link"].startswith("khanbank://")
        (asked,) = shop.invoices.values()
        assert asked["sender_invoice_no"] == session["order"]
        proof = shop.settings.proof(session["order"])
        assert asked["callback_url"] == f"http://shop.test/qpay/callback?order={session['order']}&proof={proof}"
        assert asked["amount"] == 100
        shown = await http.get(f"/api/payment-session/{session['order']}", headers={"Authorization": ""})
        assert (shown.status_code, shown.json()) == (200, session)

    serve(shop, scenario)


def test_a_caller_without_the_shops_token_is_refused_first(shop: Shop) -> None:
    """Without the shop's token it is 401, whatever the body contains, and QPay gets no request."""
    sent = [None, "", "Bearer", "Bearer wrong", f"Basic {SHOP_TOKEN}", f"Bearer {SHOP_TOKEN}x", b"Bearer \xff\xfe"]

    async def scenario(http: httpx.AsyncClient) -> None:
        del http.headers["Authorization"]
        for authorization in sent:
            headers = {} if authorization is None else {b"Authorization": as_bytes(authorization)}
            for body in ('{"amount": 100}', '{"amount": -1}', "no JSON"):
                answer = await http.post(CREATE, content=body, headers=headers)
                told = (answer.status_code, answer.headers.get("WWW-Authenticate"))
                assert told == (401, "Bearer"), (authorization, body)

    serve(shop, scenario)
    assert shop.qpay.requests == 0


def test_the_token_is_compared_in_constant_time(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hmac.compare_digest` decides, which takes the same time for any wrong token."""
    asked: list[bytes] = []
    monkeypatch.setattr(app.hmac, "compare_digest", lambda one, other: bool(asked.append(one)))

    async def scenario(http: httpx.AsyncClient) -> None:
        assert (await http.post(CREATE, json={"amount": 100})).status_code == 401
        assert len(asked) == 1

    serve(shop, scenario)


AMOUNTS = ["0", "-1", "0.001", "1e13", "NaN", "Infinity", "-Infinity", "1e400", '"x"', '"NaN"', "true", "null", "[]"]


def test_a_bad_amount_is_refused(shop: Shop) -> None:
    """A value that is not an amount of money gives 422 with a reason, and makes neither an order nor an invoice."""
    bodies = [*(f'{{"amount": {amount}}}' for amount in AMOUNTS), "{}", "[]", "no JSON", ""]

    async def scenario(http: httpx.AsyncClient) -> None:
        for body in bodies:
            answer = await http.post(CREATE, content=body, headers={"Content-Type": "application/json"})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), (body, answer.text)

    serve(shop, scenario)
    assert shop.qpay.requests == 0


def test_an_amount_stays_exact(shop: Shop) -> None:
    """Text and numbers reach QPay as the decimal that they state."""
    amounts = {"99.50": "99.5", 99.5: "99.5", "1E+2": "100", 1234567.89: "1234567.89"}

    async def scenario(http: httpx.AsyncClient) -> None:
        assert [(await ordered(http, sent))["amount"] for sent in amounts] == list(amounts.values())

    serve(shop, scenario)
    asked = [Decimal(str(invoice["amount"])) for invoice in shop.invoices.values()]
    assert asked == [Decimal(amount) for amount in amounts.values()]


@pytest.mark.parametrize("how", ["key", "order"])
def test_a_repeated_click_makes_no_second_invoice(shop: Shop, how: str) -> None:
    """Twenty clicks at once and one later are one order: one 201, the others 200 with the same answer."""
    headers = {"Idempotency-Key": "click"} if how == "key" else {}
    body = {"amount": 100} if how == "key" else {"amount": 100, "order": "A-17"}
    shop.qpay.shop_latency = 0.05

    async def scenario(http: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(http.post(CREATE, json=body, headers=headers) for _ in range(20)))
        answers.append(await http.post(CREATE, json=body, headers=headers))
        assert sorted(answer.status_code for answer in answers) == [200] * 20 + [201]
        assert len({answer.text for answer in answers}) == 1

    serve(shop, scenario)
    (asked,) = shop.invoices.values()
    assert asked["invoice_description"] == ("Order" if how == "key" else "Order A-17")


def test_the_order_number_overrides_the_key(shop: Shop) -> None:
    """A new key for a known order number is the same order; without either, each request is a new order."""

    async def scenario(http: httpx.AsyncClient) -> None:
        body = {"amount": 100, "order": "A-17"}
        for key in ("first", "second"):
            await http.post(CREATE, json=body, headers={"Idempotency-Key": key})
        assert len(shop.invoices) == 1
        assert (await ordered(http))["order"] != (await ordered(http))["order"]
        assert len(shop.invoices) == 3

    serve(shop, scenario)


def test_a_key_stands_for_one_amount(shop: Shop) -> None:
    """The same key with another amount is the shop's mistake: 422, and no invoice."""

    async def scenario(http: httpx.AsyncClient) -> None:
        await ordered(http, 100, **{"Idempotency-Key": "k"})
        same = await http.post(CREATE, json={"amount": "100.00"}, headers={"Idempotency-Key": "k"})
        other = await http.post(CREATE, json={"amount": 101}, headers={"Idempotency-Key": "k"})
        assert (same.status_code, other.status_code, other.json()["code"]) == (200, 422, "key_reused")

    serve(shop, scenario)
    assert len(shop.invoices) == 1


def test_an_unknown_outcome_is_reported_and_never_tried_again(shop: Shop) -> None:
    """If QPay's answer is lost, the shop is told each time that the outcome is unknown; QPay is not asked again."""

    async def scenario(http: httpx.AsyncClient) -> None:
        shop.qpay.reset_next(where="shop")
        first = await http.post(CREATE, json={"amount": 100}, headers={"Idempotency-Key": "k"})
        asked = shop.qpay.requests
        again = await http.post(CREATE, json={"amount": 100}, headers={"Idempotency-Key": "k"})
        assert (first.status_code, first.json()["code"]) == (502, "outcome_unknown")
        assert first.json()["order"] == again.json()["order"]
        assert (again.status_code, shop.qpay.requests) == (502, asked)

    serve(shop, scenario)
    assert shop.invoices == {}


def test_an_interrupted_request_leaves_an_unknown_outcome(shop: Shop) -> None:
    """A worker that is stopped while QPay answers does not free the key: the invoice may exist."""

    async def scenario(http: httpx.AsyncClient) -> None:
        await ordered(http)
        shop.qpay.hang_next(where="shop")
        asked = shop.qpay.requests
        request = asyncio.create_task(http.post(CREATE, json={"amount": 100}, headers={"Idempotency-Key": "k"}))
        async with asyncio.timeout(30):
            while shop.qpay.requests == asked:
                await asyncio.sleep(0.01)
        request.cancel()
        with suppress(asyncio.CancelledError):
            await request
        again = await http.post(CREATE, json={"amount": 100}, headers={"Idempotency-Key": "k"})
        assert (again.status_code, again.json()["code"]) == (502, "outcome_unknown")

    serve(shop, scenario)


def test_a_worker_that_died_leaves_an_unknown_outcome(tmp_path: Path) -> None:
    """An order that has been opening for longer than any answer takes stays unknown, for every worker."""
    now = [1000.0]
    table = Orders(str(tmp_path / "orders.db"), clock=lambda: now[0])
    order, ours = table.claim("k", Decimal(100))
    assert (order.state, ours) == (State.OPENING, True)
    now[0] += orders.LONGEST_OPENING
    assert table.claim("k", Decimal(100)) == (order, False)
    now[0] += 1
    left, ours = table.claim("k", Decimal(100))
    assert (left.state, ours) == (State.UNKNOWN, False)
    table.close()


def test_after_a_refusal_the_shop_may_ask_again(shop: Shop) -> None:
    """After QPay's refusal, or without a token, the same key makes the invoice when that is possible."""

    async def scenario(http: httpx.AsyncClient) -> None:
        headers = {"Idempotency-Key": "k"}
        shop.qpay.fail_next(status=400, body={"error": "INVOICE_CODE_INVALID"}, where="shop")
        refused = await http.post(CREATE, json={"amount": 100}, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (502, "refused")
        assert refused.json()["qpay"] == "INVOICE_CODE_INVALID"
        shop.qpay.fail_next(status=429, where="shop")
        busy = await http.post(CREATE, json={"amount": 100}, headers=headers)
        assert (busy.status_code, busy.json()["code"], busy.headers["Retry-After"]) == (503, "unavailable", "10")
        await ordered(http, **headers)

    serve(shop, scenario)
    assert len(shop.invoices) == 1


def test_wrong_credentials_of_the_merchant_leak_no_secret(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """INV-9: without a token the shop gets 503, the reason is in the log, and the password is in no output."""
    shop.qpay.credentials = {"TEST_MERCHANT": "another"}

    async def scenario(http: httpx.AsyncClient) -> None:
        answer = await http.post(CREATE, json={"amount": 100})
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert "123456" not in answer.text

    serve(shop, scenario)
    assert "AUTHENTICATION_FAILED" in caplog.text
    assert "123456" not in caplog.text


def test_a_callback_pays_its_order_and_no_other(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """QPay confirms each callback; ten at once pay one order once; the other order stays open."""
    caplog.set_level(logging.INFO, "order_service")

    async def scenario(http: httpx.AsyncClient) -> None:
        mine, other = await ordered(http), await ordered(http)
        payment_id = shop.qpay.pay(mine["invoice_id"])
        unknown = shop.qpay.callback_of(payment_id).replace(f"qpay_payment_id={payment_id}", "qpay_payment_id=493622")
        assert (await http.get(unknown)).text == "no such payment"
        answers = await asyncio.gather(*(called_back(http, shop, payment_id) for _ in range(10)))
        assert answers == [(200, "SUCCESS")] * 10
        states = [(await http.get(f"/api/payment-session/{each['order']}")).json()["status"] for each in (mine, other)]
        assert states == ["paid", "open"]
        assert [line for line in caplog.messages if "is paid" in line] == [f"order {mine['order']} is paid"]

    serve(shop, scenario)


def test_a_forged_callback_costs_no_call_to_qpay(shop: Shop) -> None:
    """Without the proof of an order, or with another order's, the answer is 404 and QPay is not asked."""

    async def scenario(http: httpx.AsyncClient) -> None:
        mine, other = await ordered(http), await ordered(http)
        asked = shop.qpay.requests
        right = shop.settings.proof(mine["order"])
        for query in ({}, {"order": other["order"], "proof": right}, {"order": mine["order"], "proof": right[:-1]}):
            for number in range(100):
                answer = await http.get("/qpay/callback", params={"qpay_payment_id": f"forged-{number}", **query})
                assert (answer.status_code, answer.text) == (404, "no such payment")
        assert shop.qpay.requests == asked

    serve(shop, scenario)


def test_a_partial_payment_does_not_pay_an_order(shop: Shop) -> None:
    """An order over 100 is not paid by 40; another 60 pays it."""

    async def scenario(http: httpx.AsyncClient) -> None:
        session = await ordered(http)
        for amount, status in ((40, "open"), (60, "paid")):
            assert await called_back(http, shop, shop.qpay.pay(session["invoice_id"], amount)) == (200, "SUCCESS")
            assert (await http.get(f"/api/payment-session/{session['order']}")).json()["status"] == status

    serve(shop, scenario)


def test_a_callback_that_cannot_be_confirmed_changes_nothing(shop: Shop) -> None:
    """While QPay is busy a callback gets 503 and may come again; a callback for a foreign invoice matches no order."""

    async def scenario(http: httpx.AsyncClient) -> None:
        session = await ordered(http)
        payment_id = shop.qpay.pay(session["invoice_id"])
        with shop.qpay.fail_while(where="shop"):
            assert (await called_back(http, shop, payment_id))[0] == 503
        assert (await http.get(f"/api/payment-session/{session['order']}")).json()["status"] == "open"
        assert await called_back(http, shop, payment_id) == (200, "SUCCESS")
        strange = shop.qpay._shop._create({**next(iter(shop.invoices.values()))})["invoice_id"]
        assert await called_back(http, shop, shop.qpay.pay(str(strange))) == (200, "SUCCESS")

    serve(shop, scenario)


def test_reading_an_order_sends_qpay_no_request(shop: Shop) -> None:
    """Page and status may be read without limit: QPay forbids polling, so they send it no request."""

    async def scenario(http: httpx.AsyncClient) -> None:
        order = (await ordered(http))["order"]
        asked = shop.qpay.requests
        for path in (f"/api/payment-session/{order}", f"/pay/{order}", "/health") * 10:
            assert (await http.get(path, headers={"Authorization": ""})).status_code == 200
        assert shop.qpay.requests == asked

    serve(shop, scenario)


def test_a_customer_can_replace_a_lost_callback(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """`I have paid` asks QPay, at a limited rate and number, and finds the payment whose callback was lost."""
    now = [1000.0]
    make = Orders.__init__
    monkeypatch.setattr(Orders, "__init__", lambda self, path: make(self, path, clock=lambda: now[0]))

    async def scenario(http: httpx.AsyncClient) -> None:
        session, other = await ordered(http), await ordered(http)
        asked = shop.qpay.requests
        for order in (session, other):
            for _ in range(10):
                found = await http.post(f"/api/payment-session/{order['order']}/check")
                assert (found.status_code, found.json()["status"]) == (200, "open")
        assert shop.qpay.requests == asked + 2
        shop.qpay.pay(session["invoice_id"])
        now[0] += orders.CHECK_PAUSE
        assert (await http.post(f"/api/payment-session/{session['order']}/check")).json()["status"] == "paid"
        for _ in range(10):
            now[0] += orders.CHECK_PAUSE
            await http.post(f"/api/payment-session/{other['order']}/check")
        assert shop.qpay.requests == asked + 2 + 1 + orders.MOST_CHECKS - 1

    serve(shop, scenario)


def test_an_unknown_order_is_a_404(shop: Shop) -> None:
    """Status, check and page of an unknown id are 404."""

    async def scenario(http: httpx.AsyncClient) -> None:
        answers = [
            await http.get("/api/payment-session/unknown"),
            await http.post("/api/payment-session/unknown/check"),
            await http.get("/pay/unknown"),
        ]
        assert [answer.status_code for answer in answers] == [404] * 3

    serve(shop, scenario)


def test_the_page_loads_nothing_from_elsewhere(shop: Shop) -> None:
    """The page loads no foreign asset, and its policy allows only its own style and script, by their hashes."""

    async def scenario(http: httpx.AsyncClient) -> None:
        answer = await http.get(f"/pay/{(await ordered(http))['order']}")
        assert answer.headers["Content-Type"].startswith("text/html")
        assert not re.search(r"https?://|\bsrc=|@import|url\(|<link", answer.text)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert len(re.findall(r"(?:style|script)-src 'sha256-[\w+/]{43}='", policy)) == 2
        assert "unsafe" not in policy
        assert answer.headers["Referrer-Policy"] == "no-referrer"

    serve(shop, scenario)


def test_links_that_run_code_are_left_out() -> None:
    """A bank's link opens an application or a page; `javascript:` and similar links are not shown."""
    links = ["khanbank://q?x=1", "https://qpay.mn/x", "JavaScript:alert(1)", "data:text/html,x", "nonsense", None]
    document = {"invoice_id": "1", "qr_text": "x", "urls": [{"name": "b", "link": link} for link in links]}
    shown = checkout._shown(read(document | {"qPay_shortUrl": "javascript:x"}, CreatedInvoice))
    assert [bank["link"] for bank in shown["banks"]] == links[:2]
    assert shown["short_url"] is None


def test_no_secret_is_in_an_answer_or_a_log(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """INV-9: neither the shop's token, nor the merchant's password, nor QPay's token is in an answer or a log line."""
    caplog.set_level(logging.DEBUG)
    said: list[str] = []

    async def scenario(http: httpx.AsyncClient) -> None:
        session = await http.post(CREATE, json={"amount": 100})
        paid = await http.get(shop.qpay.callback_of(shop.qpay.pay(session.json()["invoice_id"])))
        said.extend([session.text, paid.text, repr(session.headers), repr(shop.settings)])
        shop.qpay.reset_next(where="shop")
        said.append((await http.post(CREATE, json={"amount": 100})).text)

    serve(shop, scenario)
    secrets = [shop.settings.shop_token, "123456", *(s.access_token for s in shop.qpay._sessions._live)]
    assert len(secrets) == 3
    assert not [secret for secret in secrets for text in [*said, caplog.text] if secret in text]


def test_the_orders_of_many_workers_do_not_collide(tmp_path: Path) -> None:
    """Eight workers at once open a new file; of all claims for one key, on all of them, one gets the order."""
    path, barrier = str(tmp_path / "orders.db"), threading.Barrier(8)
    ours: list[bool] = []

    def work() -> None:
        barrier.wait(30)
        table = Orders(path)
        ours.extend(table.claim(str(number), Decimal(1))[1] for number in range(5))
        table.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(ours), sum(ours)) == (40, 5)
    assert (tmp_path / "orders.db").stat().st_mode & 0o077 == 0


def test_settings_name_what_is_missing() -> None:
    """One message names every missing variable; a short token and an invalid address are refused, unquoted."""
    with pytest.raises(ConfigurationError) as error:
        Settings.from_env({"SHOP_TOKEN": " "})
    assert all(name in str(error.value) for name in REQUIRED)
    for bad in ({"SHOP_TOKEN": "short-secret"}, {"PUBLIC_URL": "shop.test"}):
        with pytest.raises(ConfigurationError) as error:
            Settings.from_env(ENVIRONMENT | bad)
        assert "short-secret" not in str(error.value)


def test_workers_share_a_token_by_default() -> None:
    """The backend is TOKENCACHE_BACKEND, else REDIS_DATABASE_URI, else the files of this host; no URL is shown."""
    redis = {"REDIS_DATABASE_URI": "redis://:hidden@localhost/0"}
    assert Settings.from_env(ENVIRONMENT).backend == "file://"
    assert Settings.from_env(ENVIRONMENT | redis).backend == redis["REDIS_DATABASE_URI"]
    assert Settings.from_env(ENVIRONMENT | redis | {"TOKENCACHE_BACKEND": "file:///t"}).backend == "file:///t"
    assert "hidden" not in repr(Settings.from_env(ENVIRONMENT | redis))
    assert Settings.from_env(ENVIRONMENT).public_url == "https://shop.test"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"SHOP_TOKEN": ""}, "SHOP_TOKEN"),
        ({"TOKENCACHE_BACKEND": "rdis://:hidden@x"}, "redis"),
        ({"QPAY_BASE_URL": "http://qpay.test"}, "https"),
        ({"ORDERS_DATABASE": "/nowhere/orders.db"}, "nowhere"),
    ],
)
def test_a_wrong_setting_is_reported_before_a_worker_starts(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    given: dict[str, str],
    said: str,
) -> None:
    """`python -m order_service` ends with code 2 and one line that names the problem, and no secret."""
    for name, value in (ENVIRONMENT | {"ORDERS_DATABASE": str(tmp_path / "orders.db")} | given).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(__main__.uvicorn, "run", lambda *_, **__: pytest.fail("it served"))
    assert __main__.main([]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "hidden" not in shown
    assert "x" * 16 not in shown


def test_readme_names_every_setting() -> None:
    """The example's README has a line for each variable that the service reads."""
    readme = (EXAMPLE / "README.md").read_text()
    read_here = re.findall(r"given(?:\.get\(|\[)\"(\w+)\"", (EXAMPLE / "src/order_service/settings.py").read_text())
    assert len(set(read_here)) > 4
    assert not [name for name in {*read_here, *REQUIRED} if f"`{name}`" not in readme]


def test_the_example_can_be_installed(tmp_path: Path) -> None:
    """Installed beside tokencache it brings its page, and finds it there."""
    target = str(tmp_path / "site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, str(EXAMPLE)]
    ran = subprocess.run(install, capture_output=True, text=True, check=False)
    if ran.returncode:
        pytest.fail(ran.stderr[-1000:])
    code = "import json, order_service.app as a; print(json.dumps([a.__file__, len(a.PAGE)]))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": target}
    )
    where, length = json.loads(shown.stdout)
    assert where.startswith(target)
    assert length == len(app.PAGE)
