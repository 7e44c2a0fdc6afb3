"""FakeQPay: it behaves as QPay's document says, and ends cleanly."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

import httpx
import pytest

from tokencache_qpay.testing import FakeQPay, fake_qpay

__all__ = ["fake_qpay"]

BASIC = ("TEST_MERCHANT", "123456")
INVOICE = {
    "invoice_code": "TEST_INVOICE",
    "sender_invoice_no": "1",
    "invoice_receiver_code": "terminal",
    "invoice_description": "tea",
    "callback_url": "https://shop.example/paid",
    "amount": 100,
}


def login(fake: FakeQPay, auth: tuple[str, str] = BASIC, **options: float) -> httpx.Response:
    """Ask for a token."""
    return httpx.post(f"{fake.url}/v2/auth/token", auth=auth, **options)  # type: ignore[arg-type]


def refresh(fake: FakeQPay, token: str) -> httpx.Response:
    """Send a refresh token."""
    return httpx.post(f"{fake.url}/v2/auth/refresh", headers={"Authorization": f"Bearer {token}"})


def shop(fake: FakeQPay, token: str | None = None) -> httpx.Client:
    """Return a client that is logged in."""
    token = token or login(fake).json()["access_token"]
    return httpx.Client(base_url=f"{fake.url}/v2", headers={"Authorization": f"Bearer {token}"})


def allowed(fake: FakeQPay, token: str) -> bool:
    """Return whether the shop accepts a token."""
    with shop(fake, token) as client:
        return client.get("/invoice/none").status_code == 422


# --- tokens -------------------------------------------------------------------------------------------------------


def test_a_token_answer_has_qpays_shape(fake_qpay: FakeQPay) -> None:
    """The answer has eight fields, an epoch a day after Date, a cookie, and a JWT whose ``exp`` is decades off."""
    answer = login(fake_qpay)
    fields = answer.json()
    assert set(fields) == {
        "token_type",
        "refresh_expires_in",
        "refresh_token",
        "access_token",
        "expires_in",
        "scope",
        "not-before-policy",
        "session_state",
    }
    date = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    assert isinstance(fields["expires_in"], int)
    assert fields["expires_in"] - date == pytest.approx(86_400, abs=1)
    assert fields["refresh_expires_in"] == fields["expires_in"]
    assert (fields["token_type"], fields["not-before-policy"]) == ("bearer", "0")
    assert answer.headers["Set-Cookie"].startswith("qpay_merchant_openapi.sid=")
    assert 260 <= len(fields["access_token"]) <= 364
    claims = fields["access_token"].split(".")[1]
    payload = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    assert payload["exp"] == payload["iat"] + fields["expires_in"]


def test_expires_in_can_be_set(fake_qpay: FakeQPay) -> None:
    """It can be a duration, a small float, or the result of a function."""
    fake_qpay.expires = "duration"
    assert login(fake_qpay).json()["expires_in"] == 86_400
    fake_qpay.lifetime = 0.5
    assert login(fake_qpay).json()["expires_in"] == 0.5
    fake_qpay.expires = lambda now, lifetime: f"{lifetime}!"
    assert login(fake_qpay).json()["expires_in"] == "0.5!"


def test_a_token_ends(fake_qpay: FakeQPay) -> None:
    """After its lifetime the shop refuses a token."""
    token = login(fake_qpay).json()["access_token"]
    assert allowed(fake_qpay, token)
    fake_qpay.clock_offset = 86_401
    assert not allowed(fake_qpay, token)


def test_the_fakes_clock_can_be_off(fake_qpay: FakeQPay) -> None:
    """``clock_offset`` moves Date and epoch together."""
    fake_qpay.clock_offset = -7_200
    answer = login(fake_qpay)
    date = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    assert answer.json()["expires_in"] - date == pytest.approx(86_400, abs=1)
    assert date < time.time() - 7_000


@pytest.mark.parametrize("auth", [("TEST_MERCHANT", "wrong"), ("unknown", "123456")])
def test_wrong_credentials_fail_as_documented(fake_qpay: FakeQPay, auth: tuple[str, str]) -> None:
    """The answer is 401 AUTHENTICATION_FAILED with a Mongolian message; it is counted, and no token is given."""
    answer = login(fake_qpay, auth)
    assert (answer.status_code, answer.json()["error"]) == (401, "AUTHENTICATION_FAILED")
    assert (fake_qpay.logins, fake_qpay.issued) == (1, 0)


@pytest.mark.parametrize("header", [None, "Bearer x", "Basic !", "Basic /w=="])
def test_missing_credentials_give_the_misspelled_code(fake_qpay: FakeQPay, header: str | None) -> None:
    """The answer is 401 NO_CREDENDIALS, as QPay spells it, for a login and in the shop."""
    headers = {"Authorization": header} if header else {}
    for path in ("auth/token", "auth/refresh", "invoice"):
        answer = httpx.post(f"{fake_qpay.url}/v2/{path}", headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (401, "NO_CREDENDIALS")


def test_a_refresh_rotates(fake_qpay: FakeQPay) -> None:
    """A refresh token works once; the old pair ends, and the new one works."""
    first = login(fake_qpay).json()
    second = refresh(fake_qpay, first["refresh_token"]).json()
    assert second["refresh_token"] != first["refresh_token"]
    assert not allowed(fake_qpay, first["access_token"])
    assert allowed(fake_qpay, second["access_token"])
    assert refresh(fake_qpay, first["refresh_token"]).status_code == 401
    assert (fake_qpay.logins, fake_qpay.refreshes, fake_qpay.issued) == (1, 2, 2)


def test_tokens_can_be_revoked(fake_qpay: FakeQPay) -> None:
    """The fake can revoke one token, or all tokens."""
    one, two = (login(fake_qpay).json()["access_token"] for _ in range(2))
    fake_qpay.revoke(one)
    assert not allowed(fake_qpay, one)
    assert allowed(fake_qpay, two)
    fake_qpay.revoke()
    assert not allowed(fake_qpay, two)
    assert allowed(fake_qpay, login(fake_qpay).json()["access_token"])


def test_a_login_can_end_the_session_before(fake_qpay: FakeQPay) -> None:
    """With ``one_session`` only the newest token works."""
    fake_qpay.one_session = True
    one, two = (login(fake_qpay).json()["access_token"] for _ in range(2))
    assert not allowed(fake_qpay, one)
    assert allowed(fake_qpay, two)


def test_returned_cookies_are_counted(fake_qpay: FakeQPay) -> None:
    """The count shows a client that keeps cookies."""
    with httpx.Client() as client:
        for _ in range(2):
            client.post(f"{fake_qpay.url}/v2/auth/token", auth=BASIC)
    assert fake_qpay.cookies_received == 1


# --- the shop -----------------------------------------------------------------------------------------------------


def test_an_invoice_behaves_as_qpays_does(fake_qpay: FakeQPay) -> None:
    """Two requests make two invoices; one is OPEN, then CANCELED once; amounts mix strings and numbers."""
    with shop(fake_qpay) as client:
        one, two = (client.post("/invoice", json=INVOICE).json() for _ in range(2))
        assert one["invoice_id"] != two["invoice_id"]
        assert set(one) == {"invoice_id", "qr_text", "qr_image", "qPay_shortUrl", "urls"}
        assert set(one["urls"][0]) == {"name", "description", "logo", "link"}
        path = f"/invoice/{one['invoice_id']}"
        found = client.get(path).json()
        assert (found["invoice_status"], found["total_amount"], found["gross_amount"]) == ("OPEN", "100.00", 100)
        cancelled = client.delete(path)
        assert (cancelled.status_code, cancelled.json()) == (200, {})
        assert client.get(path).json()["invoice_status"] == "CANCELED"
        again = client.delete(path)
        assert (again.status_code, again.json()["error"]) == (400, "INVOICE_ALREADY_CANCELED")


def test_an_unpaid_check_has_no_paid_amount(fake_qpay: FakeQPay) -> None:
    """For an unpaid or unknown invoice, the count is 0, without rows and without ``paid_amount``."""
    with shop(fake_qpay) as client:
        invoice = client.post("/invoice", json=INVOICE).json()["invoice_id"]
        for object_id in (invoice, "unknown"):
            answer = client.post("/payment/check", json={"object_type": "INVOICE", "object_id": object_id})
            assert answer.json() == {"count": 0, "rows": []}


def test_a_payment_has_three_shapes(fake_qpay: FakeQPay) -> None:
    """Check, get and list use different names for the same payment, as QPay does."""
    with shop(fake_qpay) as client:
        invoice = client.post("/invoice", json=INVOICE).json()["invoice_id"]
        payment = fake_qpay.pay(invoice)
        checked = client.post("/payment/check", json={"object_type": "INVOICE", "object_id": invoice}).json()
        assert (checked["count"], checked["paid_amount"]) == (1, 100)
        (row,) = checked["rows"]
        assert (row["payment_id"], row["payment_amount"], row["trx_fee"]) == (payment, "100.00", "1.00")
        assert row["p2p_transactions"][0]["amount"] == "99.00"
        single = client.get(f"/payment/{payment}").json()
        assert (single["payment_fee"], single["transaction_type"], single["object_id"]) == ("1.00", "P2P", invoice)
        listed = client.post("/payment/list", json={"object_type": "INVOICE", "object_id": "TEST_INVOICE"}).json()
        assert [each["payment_id"] for each in listed["rows"]] == [payment]
        assert client.get(f"/invoice/{invoice}").json()["invoice_status"] == "CLOSED"
        assert client.delete(f"/invoice/{invoice}").json()["error"] == "INVOICE_PAID"


def test_a_card_payment_has_its_own_names(fake_qpay: FakeQPay) -> None:
    """A card's payment id is a UUID; ``GET /payment`` renames the fields of its transaction."""
    with shop(fake_qpay) as client:
        lines = [{"line_description": "tea", "line_quantity": "2", "line_unit_price": "50.25"}]
        asked = {name: value for name, value in INVOICE.items() if name != "amount"} | {"lines": lines}
        invoice = client.post("/invoice", json=asked).json()["invoice_id"]
        part = fake_qpay.pay(invoice, "0.5", kind="CARD")
        checked = client.post("/payment/check", json={"object_type": "INVOICE", "object_id": invoice}).json()
        assert checked["paid_amount"] == 0.5
        assert checked["rows"][0]["card_transactions"][0]["amount"] == "0.50"
        assert client.get(f"/invoice/{invoice}").json()["invoice_status"] == "OPEN"
        single = client.get(f"/payment/{part}").json()
        assert single["card_transactions"][0]["transaction_amount"] == "0.50"
        fake_qpay.pay(invoice, 100)
        page = {"object_type": "INVOICE", "object_id": invoice, "offset": {"page_number": 2, "page_limit": 1}}
        second = client.post("/payment/check", json=page).json()
        assert (second["count"], len(second["rows"])) == (2, 1)


def test_errors_have_qpays_bodies(fake_qpay: FakeQPay) -> None:
    """An unknown id gets 422, a validation error objects, an unknown path HTML."""
    with shop(fake_qpay) as client:
        for path, code in (("/invoice/x", "INVOICE_NOTFOUND"), ("/payment/x", "PAYMENT_NOTFOUND")):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error"]) == (422, code)
        bad = client.post("/payment/check", json={"object_id": "x"})
        required = {"object_type": {"type": "REQUIRED", "message": "Required!"}}
        assert (bad.status_code, bad.json()) == (400, {"error": required, "message": required})
        kind = client.post("/payment/check", json={"object_type": "TEA", "object_id": "x"})
        assert kind.json()["error"] == "INVALID_OBJECT_TYPE"
        assert client.post("/invoice", json=INVOICE | {"amount": "tea"}).json()["error"] == "INVALID_AMOUNT"
        assert client.post("/invoice", content=b"tea").json()["error"] == "OBJECT_DATA_ERROR"
        nothing = client.get("/invoice/list/x")
        assert (nothing.status_code, nothing.headers["Content-Type"]) == (404, "text/html")


# --- faults -------------------------------------------------------------------------------------------------------


def test_faults_come_in_order(fake_qpay: FakeQPay) -> None:
    """Each scripted fault is used once, and then the server works again."""
    fake_qpay.fail_next(2, status=503, body={"error": "X"}, headers={"Retry-After": "9"})
    fake_qpay.html_next()
    fake_qpay.fail_next(status=400, body=b"raw")
    for _ in range(2):
        busy = login(fake_qpay)
        assert (busy.status_code, busy.json(), busy.headers["Retry-After"]) == (503, {"error": "X"}, "9")
    page = login(fake_qpay)
    assert (page.status_code, b"<html>" in page.content) == (502, True)
    assert login(fake_qpay).content == b"raw"
    assert login(fake_qpay).status_code == 200
    assert (fake_qpay.logins, fake_qpay.issued) == (5, 1)


def test_a_reset_and_a_hang_give_no_answer(fake_qpay: FakeQPay) -> None:
    """A reset cuts the connection; a hang keeps it until the client gives up."""
    fake_qpay.reset_next()
    with pytest.raises(httpx.TransportError):
        login(fake_qpay)
    fake_qpay.hang_next()
    with pytest.raises(httpx.ReadTimeout):
        login(fake_qpay, timeout=0.1)
    assert login(fake_qpay).status_code == 200


def test_faults_can_be_limited_to_a_place(fake_qpay: FakeQPay) -> None:
    """A fault for the shop does not affect the login, and the other way round."""
    fake_qpay.fail_next(where="shop")
    with shop(fake_qpay) as client:
        assert [client.get("/invoice/x").status_code for _ in range(2)] == [500, 422]
        with fake_qpay.fail_while(where="token"):
            assert client.get("/invoice/x").status_code == 422
            assert [login(fake_qpay).status_code for _ in range(2)] == [500, 500]
        with fake_qpay.fail_while(where="all"):
            assert (client.get("/invoice/x").status_code, login(fake_qpay).status_code) == (500, 500)
        assert (client.get("/invoice/x").status_code, login(fake_qpay).status_code) == (422, 200)


def test_logins_can_be_held(fake_qpay: FakeQPay) -> None:
    """Held logins arrive, are counted and reported at once, and are not answered."""
    calls: list[int] = []
    fake_qpay.on_login = lambda: calls.append(fake_qpay.logins)
    with ThreadPoolExecutor(5) as pool:
        with fake_qpay.hold():
            asked = [pool.submit(login, fake_qpay) for _ in range(5)]
            assert fake_qpay.login_arrived.wait(10)
            fake_qpay.wait_for_logins(5)
            assert not any(each.done() for each in asked)
        assert {each.result().status_code for each in asked} == {200}
    assert (fake_qpay.logins, fake_qpay.most_logins_at_once, calls) == (5, 5, [1, 2, 3, 4, 5])


def test_waiting_for_logins_times_out(fake_qpay: FakeQPay) -> None:
    """The error of a wait in vain says how many logins came."""
    with pytest.raises(TimeoutError, match="0 of 1"):
        fake_qpay.wait_for_logins(1, timeout=0.01)


# --- the server ---------------------------------------------------------------------------------------------------


def test_a_thousand_connections_at_once(fake_qpay: FakeQPay) -> None:
    """A thousand clients log in, each over its own connection, while all are held."""
    request = b"POST /v2/auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nAuthorization: Basic %b\r\n\r\n"
    request %= base64.b64encode(b"TEST_MERCHANT:123456")

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection(*fake_qpay.url.removeprefix("http://").split(":"))
        writer.write(request)
        line = await reader.readline()
        writer.close()
        return line

    async def scenario() -> list[bytes]:
        asked = [asyncio.create_task(ask()) for _ in range(1_000)]
        await asyncio.to_thread(fake_qpay.wait_for_logins, 1_000, 60)
        fake_qpay._on_loop(fake_qpay._gate.set)
        return await asyncio.gather(*asked)

    with fake_qpay.hold():
        lines = asyncio.run(scenario())
    assert set(lines) == {b"HTTP/1.1 200 OK\r\n"}
    assert fake_qpay.most_logins_at_once == 1_000


def test_a_connection_is_reused(fake_qpay: FakeQPay) -> None:
    """Several requests use one connection, also with a body and after an error."""
    ports: set[object] = set()

    def note(response: httpx.Response) -> None:
        ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))

    with shop(fake_qpay) as client:
        client.event_hooks["response"] = [note]
        for _ in range(3):
            client.post("/invoice", json=INVOICE)
            client.get("/invoice/x")
    assert len(ports) == 1


def test_an_invalid_request_closes_only_its_connection(fake_qpay: FakeQPay) -> None:
    """Bytes that are not HTTP end their own connection; others go on."""
    host, _, port = fake_qpay.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"\x16\x03nonsense\r\n\r\n")
        assert connection.recv(1) == b""
    assert login(fake_qpay).status_code == 200


def test_stopping_leaves_nothing_behind() -> None:
    """After ``stop``, also with unanswered requests, no thread, port or second error is left."""
    before = set(threading.enumerate())  # a thread of another test may end meanwhile
    fake = FakeQPay().start()
    url = fake.url
    with fake.hold(), ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(login, fake) for _ in range(2)]
        fake.wait_for_logins(2)
        fake.stop()
        for each in asked:
            with pytest.raises(httpx.TransportError):
                each.result()
    fake.stop()
    assert set(threading.enumerate()) <= before
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_pytest_is_loaded_only_for_the_fixture() -> None:
    """Importing the fake does not load pytest, so demos can use it."""
    program = (
        "import sys; from tokencache_qpay.testing import FakeQPay; assert 'pytest' not in sys.modules;"
        " from tokencache_qpay.testing import fake_qpay; assert 'pytest' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
