"""A demo without QPay: ``python -m order_service.demo`` starts a fake QPay and the service, and pays on Enter."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from order_service.__main__ import PORT, WORKERS
from tokencache_qpay.testing import FakeQPay

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

PATIENCE: Final = 60.0
GRACE: Final = 10.0
BACKENDS: Final = ("TOKENCACHE_BACKEND", "REDIS_DATABASE_URI")


class NotServing(Exception):
    """The service ended instead of answering."""


@contextmanager
def serving(qpay: FakeQPay, shop_token: str, port: int, workers: int) -> Generator[httpx.Client]:
    """Run the service with its workers; yield a client that plays the shop, QPay and the customer."""
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="order-service-") as folder:
        given = {"QPAY_INVOICE_CODE": "TEST_INVOICE", "SHOP_TOKEN": shop_token, "PUBLIC_URL": url}
        given["ORDERS_DATABASE"] = str(Path(folder, "orders.db"))
        if not any(os.environ.get(name) for name in BACKENDS):
            given["TOKENCACHE_BACKEND"] = Path(folder, "tokens").as_uri()
        log = Path(folder, "log")
        with log.open("wb") as written:
            service = subprocess.Popen(  # noqa: S603  (constant arguments)
                [sys.executable, "-P", "-m", "order_service", "--port", str(port), "--workers", str(workers)],
                env={**os.environ, **qpay.environ, **given},
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C on the terminal goes only to the demo, which then ends the service
            )
        try:
            with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
                _await(client, service, log)
                yield client
        finally:
            _end(service)


def _end(service: subprocess.Popen[bytes]) -> None:
    """End the service and its workers; requests in progress get some time to finish."""
    service.terminate()
    try:
        service.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(service.pid, signal.SIGKILL)
        service.wait()


def _await(client: httpx.Client, service: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the service answers. Raises ``NotServing`` with its output."""
    deadline = time.monotonic() + PATIENCE
    while service.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if client.get("/health").is_success and service.poll() is None:
                return
        time.sleep(0.05)
    raise NotServing(log.read_text(errors="replace")[-1000:].strip())


def order(client: httpx.Client, shop_token: str, amount: str) -> dict[str, Any]:
    """Make an order, like the shop."""
    headers = {"Authorization": f"Bearer {shop_token}", "Idempotency-Key": secrets.token_hex(8)}
    answer = client.post("/api/create-payment-session", json={"amount": amount}, headers=headers)
    session: dict[str, Any] = answer.raise_for_status().json()
    return session


def pay(client: httpx.Client, qpay: FakeQPay, session: dict[str, Any]) -> str:
    """Pay like a customer, call back like QPay, and return the new status of the order."""
    payment_id = qpay.pay(session["invoice_id"])
    client.get(qpay.callback_of(payment_id)).raise_for_status()
    return str(client.get(f"/api/payment-session/{session['order']}").raise_for_status().json()["status"])


def main(arguments: list[str] | None = None) -> int:
    """Run the demo until interrupted; return the exit code."""
    parser = argparse.ArgumentParser("python -m order_service.demo", description="The order service on a fake QPay.")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--amount", default="100")
    given = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    shop_token = secrets.token_urlsafe(24)
    try:
        with FakeQPay() as qpay, serving(qpay, shop_token, given.port, given.workers) as client:
            print(f"A fake QPay, and the order service with {given.workers} workers on port {given.port}. Ctrl-C ends.")
            while True:
                session = order(client, shop_token, given.amount)
                print(f"\nOpen this page:  {session['page']}", flush=True)
                _enter("Press Enter to pay … ")
                print(f"The order is {pay(client, qpay, session)}; logins at QPay so far: {qpay.logins}.", flush=True)
                _enter("Press Enter for another order … ")
    except KeyboardInterrupt:
        print("\nEnded.")
        return 0
    except NotServing as error:
        print(f"The service does not start; is port {given.port} free? Choose another by --port.\n{error}")
        return 1


def _enter(prompt: str) -> None:
    """Wait for Enter; without a terminal, wait until interrupted."""
    try:
        input(prompt)
    except EOFError:
        signal.pause()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the demo like Ctrl-C."""
    del number, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
