"""The example `order_service` as a shop runs it: four workers, one token in Redis, one file of orders; its demo."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from order_service import demo

from tokencache.testing._server_process import free_port
from tokencache_qpay.testing import FakeQPay

if TYPE_CHECKING:
    from tokencache.testing.loopback import Asked, Reply

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("importable")]

PATIENCE = 30.0
WORKERS, EACH = 4, 25
SHOP_TOKEN = "the shop's own token, not to be seen"


class Revoking(FakeQPay):
    """A QPay that ends all sessions when half of the invoices are made."""

    def __init__(self) -> None:
        super().__init__(shop_latency=0.01)
        self.made: list[str] = []
        self.refused = 0

    def _shop_call(self, asked: Asked, path: str) -> Reply:
        """Answer, count, and end the sessions in the middle."""
        reply = super()._shop_call(asked, path)
        if path == "/v2/invoice" and reply.status == 200:
            self.made.append(json.loads(asked.body)["sender_invoice_no"])
            if len(self.made) == WORKERS * EACH // 2:
                self.revoke()
        self.refused += reply.status == 401
        return reply


def connections(port: int) -> list[HTTPConnection]:
    """Return the same number of connections to each worker, although the system distributes them at random."""
    found: dict[int, list[HTTPConnection]] = {}
    while sum(map(len, found.values())) < WORKERS * EACH:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.request("GET", "/health")
        mine = found.setdefault(json.load(connection.getresponse())["worker"], [])
        if len(mine) < EACH:
            mine.append(connection)
        else:
            connection.close()
    assert len(found) == WORKERS
    return [connection for mine in found.values() for connection in mine]


def at_once(crowd: list[HTTPConnection], keys: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """Order on all connections at once, each with its key; return the answers."""
    barrier = threading.Barrier(len(crowd))

    def order(connection: HTTPConnection, key: str) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {SHOP_TOKEN}", "Idempotency-Key": key, "Content-Type": "application/json"}
        barrier.wait(PATIENCE)
        connection.request("POST", "/api/create-payment-session", '{"amount": 100}', headers)
        answer = connection.getresponse()
        return answer.status, json.load(answer)

    with ThreadPoolExecutor(len(crowd)) as pool:
        return list(pool.map(order, crowd, keys))


def test_a_hundred_orders_on_four_workers(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-2, INV-6: 100 orders at once, cold, the token revoked in the middle: 100 invoices, 2 logins, no duplicate.

    Then a hundred clicks on one order, through all workers, make one more invoice.
    """
    monkeypatch.delenv("TOKENCACHE_BACKEND", raising=False)
    monkeypatch.setenv("REDIS_DATABASE_URI", redis_url)
    monkeypatch.setenv("QPAY_CACHE_KEY", "order-service-test")
    port = free_port()
    with Revoking() as qpay, demo.serving(qpay, SHOP_TOKEN, port, WORKERS):
        crowd = connections(port)
        answers = at_once(crowd, [f"cart-{number}" for number in range(len(crowd))])
        assert Counter(status for status, _ in answers) == {201: 100}
        assert (len(qpay.made), qpay.logins) == (100, 2)
        assert qpay.refused > 0, "the revocation refused no request"
        assert sorted(qpay.made) == sorted({session["order"] for _, session in answers})
        assert len({session["invoice_id"] for _, session in answers}) == 100

        clicks = at_once(crowd, ["one click"] * len(crowd))
        assert Counter(status for status, _ in clicks) == {201: 1, 200: 99}
        assert len({session["invoice_id"] for _, session in clicks}) == 1
        assert (len(qpay.made), qpay.logins) == (101, 2)
        for connection in crowd:
            connection.close()


def test_the_demo_pays_on_enter_and_ends_on_ctrl_c() -> None:
    """`python -m order_service.demo` prints the page's address, pays on Enter with one login, and leaves nothing."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name not in demo.BACKENDS}
    for name in [name for name in environment if name.startswith("COV")]:
        del environment[name]  # the demo is interrupted, which loses its coverage data
    shown = subprocess.Popen(
        [sys.executable, "-m", "order_service.demo", "--port", str(port), "--workers", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        assert shown.stdin is not None
        assert shown.stdout is not None
        page = next((found[0] for line in shown.stdout if (found := re.search(r"http://\S+/pay/\S+", line))), "")
        assert httpx.get(page, trust_env=False).is_success
        shown.stdin.write("\n")
        shown.stdin.flush()
        paid = next(line for line in shown.stdout if "The order is" in line)
        assert paid.endswith("The order is paid; logins at QPay so far: 1.\n")
        shown.send_signal(signal.SIGINT)
        rest, _ = shown.communicate(timeout=PATIENCE)
    finally:
        shown.kill()
        shown.communicate()
    assert (shown.returncode, rest.splitlines()[-1]) == (0, "Ended.")
    with pytest.raises(httpx.ConnectError):
        httpx.get(page, trust_env=False)


def test_the_demo_says_why_the_service_does_not_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a taken port the demo ends with code 1, the reason and the remedy."""
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)  # this process keeps its own handlers
    with FakeQPay() as somebody:
        port = somebody._server.port
        assert demo.main(["--port", str(port), "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert f"is port {port} free?" in said
    assert "in use" in said
