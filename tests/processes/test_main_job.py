"""The main job over real sockets and processes: one QPay login for a fleet, an early renewal, one renewal per 401."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tokencache import ProviderUnavailable, RefreshPolicy, TokenCache, TokenSource
from tokencache.events import FetchFailed, TokenFetched
from tokencache.integrations.httpx import TokenAuth
from tokencache.testing.fakes import Recorder
from tokencache_qpay import QPayProvider
from tokencache_qpay.testing import FakeQPay, fleet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.live

PATIENCE = 30.0
USER, PASSWORD = "TEST_MERCHANT", "123456"

SERVER = """
import sys
from tokencache_qpay.testing import FakeQPay

with FakeQPay(latency=0.25, lifetime=10.0, expires="duration") as fake:
    print(fake.url, flush=True)
    sys.stdin.readline()
    print(fake.logins, fake.most_logins_at_once, flush=True)
"""


@pytest.fixture
def qpay() -> Iterator[FakeQPay]:
    """A QPay whose logins take a quarter of a second."""
    with FakeQPay(latency=0.25) as fake:
        yield fake


def source_for(qpay: FakeQPay) -> TokenSource:
    """Return a source for the fake."""
    return TokenCache("memory://").source(QPayProvider(USER, PASSWORD, base_url=qpay.url))


def test_eight_processes_of_sixteen_threads_log_in_once(qpay: FakeQPay, tmp_path: Path) -> None:
    """INV-2: a cold fleet of 128 callers on file:// makes one login, and all hold the same token."""
    crowd = [fleet.start(qpay, (tmp_path / "cache").as_uri(), 16) for _ in range(8)]
    fleet.go(crowd)
    rows = fleet.answers(crowd)
    assert [row[:2] for row in rows] == [["16", "1"]] * 8, rows
    assert len({row[2] for row in rows}) == 1
    assert qpay.logins == 1


def test_short_tokens_under_load_cause_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-1, INV-2, INV-4: short tokens under 8 busy threads: no late token, one login at a time, no caller waits.

    The window is eight of ten seconds. A renewal is due each second; only a stopped machine would miss the window.
    """
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    cache = TokenCache("memory://")
    provider = QPayProvider(USER, PASSWORD, base_url=url)
    source = cache.source(provider, policy=RefreshPolicy(window_fraction=0.8))
    source.token()
    waited: list[object] = []
    acquire = type(source)._acquire

    def watched(*arguments: object) -> object:
        waited.append(arguments)
        return acquire(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(source), "_acquire", watched)  # only callers that have to wait call it
    late: list[float] = []
    seen: set[str] = set()
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            token = source.token()
            seen.add(token.value)
            left = token.expires_at - time.time()
            if left <= 0:
                late.append(left)
            if len(seen) == 9:  # after some ten seconds
                over.set()
            time.sleep(0)  # let the others run

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert over.wait(PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)
    logins, at_once = server.communicate("\n", timeout=PATIENCE)[0].split()
    assert late == []
    assert waited == []
    assert int(logins) in {len(seen), len(seen) + 1}
    assert at_once == "1"


def test_fifty_callers_with_one_revoked_token_renew_it_once(qpay: FakeQPay) -> None:
    """INV-6: 50 requests are refused with the same token: one renewal, 50 good responses."""
    source = source_for(qpay)
    source.token()
    qpay.revoke()
    body = {"object_type": "INVOICE", "object_id": "none"}
    statuses: list[int] = []
    with httpx.Client(base_url=qpay.url, auth=TokenAuth(source), timeout=PATIENCE) as client:
        threads = [
            threading.Thread(target=lambda: statuses.append(client.post("/v2/payment/check", json=body).status_code))
            for _ in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert statuses == [200] * 50
    assert qpay.logins == 2


def test_the_async_client_renews_once_too(qpay: FakeQPay) -> None:
    """INV-6: the same from an event loop."""
    source = source_for(qpay)
    body = {"object_type": "INVOICE", "object_id": "none"}

    async def main() -> list[int]:
        await source.atoken()
        qpay.revoke()
        async with httpx.AsyncClient(base_url=qpay.url, auth=TokenAuth(source), timeout=PATIENCE) as client:
            replies = await asyncio.gather(*(client.post("/v2/payment/check", json=body) for _ in range(50)))
        return [reply.status_code for reply in replies]

    assert asyncio.run(main()) == [200] * 50
    assert qpay.logins == 2


def test_a_401_for_a_fresh_token_reaches_the_caller(qpay: FakeQPay) -> None:
    """INV-6: the 401 is returned after at most two logins, also for the requests that follow at once."""
    source = source_for(qpay)
    source.token()
    with (
        qpay.fail_while(status=401, body={"error": "NO_CREDENDIALS"}, where="shop"),
        httpx.Client(base_url=qpay.url, auth=TokenAuth(source), timeout=PATIENCE) as client,
    ):
        for _ in range(5):
            assert client.post("/v2/payment/check", json={}).status_code == 401
    assert qpay.logins == 2


def test_an_outage_of_the_provider_is_hidden_until_the_usable_end(qpay: FakeQPay) -> None:
    """INV-4, INV-7: from refresh_at on logins fail; callers get the token until its usable end, then the error."""
    qpay.expires, qpay.lifetime, qpay.latency = "duration", 6.0, 0.0
    seen, policy = Recorder(), RefreshPolicy(backoff=0.2, window_fraction=0.7)
    provider = QPayProvider(USER, PASSWORD, base_url=qpay.url)
    source = TokenCache("memory://", observers=[seen]).source(provider, policy=policy)
    began = time.monotonic()
    first = source.token()
    with qpay.fail_while(status=500, body={"error": "SYSTEM_BUSY"}):
        ended = None
        while ended is None:
            try:
                token = source.token()
            except ProviderUnavailable as error:
                ended = error
            else:
                assert token is first
                assert token.expires_at > time.time()
        (fetched,) = seen.of(TokenFetched)
        assert time.monotonic() > began + fetched.usable  # type: ignore[attr-defined]
        assert seen.of(FetchFailed)[0].served  # type: ignore[attr-defined]
        assert "SYSTEM_BUSY" in str(ended)
        assert 2 <= qpay.requests <= 20
    deadline = time.monotonic() + PATIENCE
    again = first
    while again is first and time.monotonic() < deadline:
        with contextlib.suppress(ProviderUnavailable):
            again = source.token()
    assert again is not first
