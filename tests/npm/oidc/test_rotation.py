"""Refresh tokens that an authorization server rotates: a fleet of processes never uses one of them twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from tokencache import ProviderRejected, TokenCache
from tokencache.providers.oauth2 import RefreshToken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import AuthorizationServer

pytestmark = pytest.mark.live

SECRET = "a-secret/of more than+thirty-two:characters"
PROCESSES = 4
CALLERS = 25
UNTIL_THE_END = {"window": 0.0}  # no renewal before the end
ROUNDS = ["at first", "refused", "refused late", "after the end", "after the end"]


class Fleet:
    """Processes that share one backend and one user's first refresh token; every second one has an event loop."""

    def __init__(self, members: list[subprocess.Popen[str]]) -> None:
        self._members = members

    def obey(self, order: str, times: int = 1) -> list[dict[str, Any]]:
        """Send all members one command at once; return each one's result."""
        for member in self._members:
            self._tell(member, {"order": order, "times": times})
        return [json.loads(self._pipe(member.stdout).readline() or "{}") for member in self._members]

    @classmethod
    def _tell(cls, member: subprocess.Popen[str], what: dict[str, object]) -> None:
        pipe = cls._pipe(member.stdin)
        pipe.write(json.dumps(what) + "\n")
        pipe.flush()

    @staticmethod
    def _pipe(pipe: Any) -> Any:  # noqa: ANN401
        assert pipe is not None
        return pipe

    @classmethod
    @contextmanager
    def of(cls, backend: str, provider: dict[str, str], policy: dict[str, float]) -> Iterator[Fleet]:
        """Start the processes, and end them."""
        with ExitStack() as stack:
            members: list[subprocess.Popen[str]] = []
            for number in range(PROCESSES):
                command = [sys.executable, str(Path(__file__).with_name("member.py"))]
                member = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                stack.enter_context(member)
                stack.callback(member.kill)
                members.append(member)
                told = {"backend": backend, "provider": provider, "policy": policy, "callers": CALLERS}
                cls._tell(member, told | {"colour": ("threads", "event loop")[number % 2]})
            assert [cls._pipe(member.stdout).readline() for member in members] == ["ready\n"] * PROCESSES
            yield cls(members)


@pytest.fixture(params=["redis", "file"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty backend that processes share."""
    if request.param == "file":
        (tmp_path / "tokens").mkdir(mode=0o700)
        return f"file://{tmp_path}/tokens"
    url: str = request.getfixturevalue("redis_url")
    with Redis.from_url(url) as client:
        client.flushall()
    return url


def settings(server: AuthorizationServer, client_id: str, user: str) -> dict[str, str]:
    """Return the settings of a provider for a user who has just signed in."""
    given = {"issuer": server.issuer, "client_id": client_id, "client_secret": SECRET}
    return given | {"client_auth": "client_secret_post", "refresh_token": server.sign_in(client_id, user)}


@pytest.mark.slow
def test_a_hundred_callers_use_each_refresh_token_once(server: AuthorizationServer, backend: str) -> None:
    """INV-2, INV-6: 100 callers in 4 processes, cold, refused and past the end: one refresh each time, none refused.

    The same holds when the fleet restarts with its first refresh token after the token's end. The server counts: each
    refresh is the next one of one chain. A repeated refresh token would have ended the chain for good.
    """
    provider, before, seen = settings(server, "hasty", "ada"), len(server.asked()), set()
    ends_at = 0.0
    for orders in (ROUNDS, ["at first"]):
        with Fleet.of(backend, provider, UNTIL_THE_END) as fleet:
            while time.time() < ends_at:
                time.sleep(0.02)
            for order in orders:
                got = fleet.obey(order)
                assert [each["errors"] for each in got] == [[]] * PROCESSES
                assert {each["late"] for each in got} == {0}
                tokens = {name for each in got for name in each["tokens"]}
                assert len(tokens) == 1, order
                seen |= tokens
                chain = [(each["grant"], each["error"], each["rotations"]) for each in server.asked()[before:]]
                assert chain == [("refresh_token", None, place + 1) for place in range(len(seen))]
                ends_at = max(each["ends_at"] for each in got)
    assert len(seen) == len(ROUNDS)  # late reporters got the stored one


@pytest.mark.slow
def test_a_busy_fleet_renews_early_and_uses_each_refresh_token_once(server: AuthorizationServer, backend: str) -> None:
    """INV-1, INV-2: callers that ask without a pause always get a good token, each from one refresh of one chain."""
    provider = settings(server, "hasty", "bob")
    before = len(server.asked())
    with Fleet.of(backend, provider, {}) as fleet:
        got = fleet.obey("ask on", times=4)
        asked = server.asked()[before:]
    assert [each["errors"] for each in got] == [[]] * PROCESSES
    assert {each["late"] for each in got} == {0}
    tokens = {name for each in got for name in each["tokens"]}
    assert [(each["error"], each["rotations"]) for each in asked] == [(None, place + 1) for place in range(len(asked))]
    assert len(tokens) <= len(asked) <= len(tokens) + 1  # the last refresh may come after the last caller


def test_a_repeated_refresh_token_is_refused(server: AuthorizationServer) -> None:
    """The server detects it: a repeated refresh token is refused, and ends the one that replaced it."""
    provider = settings(server, "shop", "eve")
    before = len(server.asked())
    with TokenCache("memory://") as one, TokenCache("memory://") as other:
        source = one.source(RefreshToken(**provider))
        source.token()
        with pytest.raises(ProviderRejected, match="invalid_grant") as caught:
            other.source(RefreshToken(**provider)).token()
        assert caught.value.error == "invalid_grant"
        assert provider["refresh_token"] not in str(caught.value)
        with pytest.raises(ProviderRejected, match="invalid_grant"):
            source.renew()
    assert [each["error"] for each in server.asked()[before:]] == [None, "invalid_grant", "invalid_grant"]
