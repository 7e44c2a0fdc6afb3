"""The public behaviour of ``TokenAuth``, tested once for httpx, httpx2, requests and aiohttp, on threads and loops."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tokencache.errors import ConfigurationError, ProviderRejected

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import TypeAlias

    from conftest import API, Ask, Issuer, Kind, LoopKind, ThreadKind
    from tokencache.testing.loopback import Asked, Reply

    Serve: TypeAlias = Callable[..., API]
    Patiently: TypeAlias = Callable[[Callable[[], object]], None]
    APatiently: TypeAlias = Callable[[Callable[[], object]], Coroutine[Any, Any, None]]

CROWD = 8
SCOPE = 'Bearer error="insufficient_scope", scope="admin"'
STEP_UP = 'Bearer error="insufficient_user_authentication", acr_values="high"'
BODIES = {
    "bytes": ({"content": b"body"}, b"body"),
    "empty": ({"content": b""}, b""),
    "json": ({"json": {"a": 1}}, b'"a"'),
    "form": ({"form": {"name": "a b"}}, b"name=a+b"),
    "upload": ({"upload": b"file's content"}, b"file's content"),
}


def test_the_token_is_in_the_header(kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask]) -> None:
    """Each request carries the source's token, and one login serves them all."""
    api = serve(1)
    answers = kind.run(issuer.source, [ask(api.url), ask(api.url), ask(api.url)])
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert api.tokens == ["Bearer fake-token-1"] * 3
    assert issuer.calls == 1


@pytest.mark.parametrize(("status", "challenge"), [(401, ""), (401, "Basic"), (400, None), (403, None)])
def test_a_refused_token_is_replaced_and_the_request_sent_again(
    kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask], *, status: int, challenge: str | None
) -> None:
    """A 401, or ``invalid_token`` with another 4xx, is answered by the same request with the next token (INV-6)."""
    api = serve(2, status=status, **({} if challenge is None else {"challenge": challenge}))
    (answer,) = kind.run(issuer.source, [ask(f"{api.url}/path?q=1", "POST", content=b"body")])
    assert (answer.status, answer.body) == (200, b"body")
    assert [(asked.method, asked.path, asked.body) for asked in api.asked] == [("POST", "/path?q=1", b"body")] * 2
    assert api.tokens == ["Bearer fake-token-1", "Bearer fake-token-2"]
    assert issuer.calls == 2


def test_a_bare_403_refuses_where_the_caller_says_so(kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask]) -> None:
    """Django OAuth Toolkit sends a bare 403 for an ended token; by default a 403 is about rights."""
    api = serve(2, status=403, challenge="")
    (given_back,) = kind.run(issuer.source, [ask(api.url)])
    (answer,) = kind.run(issuer.source, [ask(api.url)], refused={401, 403})
    assert (given_back.status, answer.status) == (403, 200)
    assert issuer.calls == 2


def test_a_second_refusal_reaches_the_caller(kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask]) -> None:
    """At most one replay; the next request does not replace the new token again (INV-6)."""
    api = serve()
    (answer,) = kind.run(issuer.source, [ask(api.url)])
    assert (answer.status, answer.body) == (401, b"no")
    assert api.tokens == ["Bearer fake-token-1", "Bearer fake-token-2"]
    (answer,) = kind.run(issuer.source, [ask(api.url)])
    assert (answer.status, answer.body) == (401, b"no")
    assert len(api.asked) == 3
    assert issuer.calls == 2


def test_without_another_token_the_refusal_reaches_the_caller(
    kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask]
) -> None:
    """If the provider has no newer token, no replay follows, and the refused answer can be read."""
    api = serve()
    issuer.value = "fake-token-1"
    (answer,) = kind.run(issuer.source, [ask(api.url)])
    assert (answer.status, answer.body) == (401, b"no")
    assert len(api.asked) == 1


@pytest.mark.parametrize(
    ("status", "challenge"), [(403, SCOPE), (401, SCOPE), (401, STEP_UP), (403, ""), (404, ""), (500, None)]
)
def test_other_refusals_cause_no_fetch(
    kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask], *, status: int, challenge: str | None
) -> None:
    """A refusal that names another cause, or does not concern the token, causes no fetch (INV-7)."""
    api = serve(status=status, **({} if challenge is None else {"challenge": challenge}))
    (answer,) = kind.run(issuer.source, [ask(api.url)])
    assert answer.status == status
    assert (len(api.asked), issuer.calls) == (1, 1)


@pytest.mark.parametrize(("body", "sign"), BODIES.values(), ids=BODIES)
def test_a_body_is_sent_again_as_it_was(
    kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask], *, body: dict[str, Any], sign: bytes
) -> None:
    """The replay carries the same bytes under the same content type."""
    api = serve(2)
    (answer,) = kind.run(issuer.source, [ask(api.url, "POST", **body)])
    first, second = api.asked
    assert answer.status == 200
    assert sign in first.body
    assert first.body == second.body
    assert first.headers.get("content-type") == second.headers.get("content-type")


def test_a_file_is_sent_again_whole_or_not_at_all(
    kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask], *, tmp_path: Path
) -> None:
    """A bare file is rewound if the library allows it; else the 401 stands. Half a file is never sent."""
    content = bytes(range(256)) * 1_000
    path = tmp_path / "upload"
    path.write_bytes(content)
    api = serve(2)
    (answer,) = kind.run(issuer.source, [ask(api.url, "POST", file=path)])
    assert answer.status == (200 if kind.files else 401)
    assert [asked.body for asked in api.asked] == [content] * (2 if kind.files else 1)


def test_a_streamed_body_is_not_sent_again(kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask]) -> None:
    """A body that cannot be read twice is not replayed: the caller gets the 401, without a login."""
    api = serve(2)
    (answer,) = kind.run(issuer.source, [ask(api.url, "POST", parts=(b"a", b"b"))])
    assert (answer.status, answer.body) == (401, b"no")
    assert [asked.body for asked in api.asked] == [b"ab"]
    assert issuer.calls == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_token_never_reaches_another_origin(
    kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask], *, status: int
) -> None:
    """A redirect to another origin arrives without the token; its 401 causes neither a renewal nor a replay."""
    api, other = serve(1), serve()
    api.redirects["/go"] = (status, f"{other.url}/there")
    (answer,) = kind.run(issuer.source, [ask(f"{api.url}/go", "POST", content=b"body")])
    assert answer.status == 401
    assert api.tokens == ["Bearer fake-token-1"]
    assert other.tokens == [None]
    assert issuer.calls == 1


def test_a_redirect_within_the_origin_keeps_the_token(kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask]) -> None:
    """The redirect's target in the same origin gets the token, and its refusal renews it: no POST is repeated."""
    api = serve(2)
    api.redirects["/pay"] = (303, "/receipt")
    (answer,) = kind.run(issuer.source, [ask(f"{api.url}/pay", "POST", content=b"body")])
    assert answer.status == 200
    assert [(asked.method, asked.path) for asked in api.asked] == [
        ("POST", "/pay"),
        ("GET", "/receipt"),
        ("GET", "/receipt"),
    ]
    assert api.tokens == ["Bearer fake-token-1", "Bearer fake-token-1", "Bearer fake-token-2"]


def test_a_redirected_replay_follows_the_same_rules(kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask]) -> None:
    """The replay may be redirected: within the origin it carries the new token, to another origin no token."""
    api, other = serve(2), serve()
    api.redirects |= {"/onward": (307, "/away"), "/away": (307, other.url)}
    answer_plainly = api._answer

    async def turn(asked: Asked) -> Reply:
        if asked.path == "/start" and asked.headers.get("authorization") in api.accepts:
            api.redirects["/start"] = (307, "/onward")
        return await answer_plainly(asked)

    api._server._handler = turn
    (answer,) = kind.run(issuer.source, [ask(f"{api.url}/start", "POST", content=b"body")])
    assert answer.status == 401
    assert api.tokens == ["Bearer fake-token-1"] + ["Bearer fake-token-2"] * 3
    assert other.tokens == [None]


def test_only_named_origins_get_the_token(kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask]) -> None:
    """With ``origins`` a request to another origin carries no token, and its 401 causes no renewal."""
    api, other = serve(1), serve()
    answers = kind.run(issuer.source, [ask(f"{api.url}/a"), ask(f"{other.url}/b")], origins=[f"{api.url}/v2"])
    assert [answer.status for answer in answers] == [200, 401]
    assert api.tokens == ["Bearer fake-token-1"]
    assert other.tokens == [None]
    assert issuer.calls == 1


@pytest.mark.parametrize("named", ["api.example", "ftp://api.example", "https://", "https://api.example:port", ""])
def test_an_invalid_origin_is_refused(kind: Kind, issuer: Issuer, named: str) -> None:
    """A wrong ``origins``, alone or in a list, is an error at once, with the remedy."""
    for given in (named, [named]):
        with pytest.raises(ConfigurationError, match=r"give scheme and host, such as 'https://api\.example'"):
            kind.auth(issuer.source, origins=given)


def test_refusals_of_one_token_cause_one_renewal(kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask]) -> None:
    """N callers are refused with the same token at once: one login, and all are served (INV-6)."""
    api = serve(2)
    api.crowd = CROWD
    answers = kind.run(issuer.source, [ask(f"{api.url}/{number}") for number in range(CROWD)])
    assert [answer.status for answer in answers] == [200] * CROWD
    assert sorted(map(str, api.tokens)) == ["Bearer fake-token-1"] * CROWD + ["Bearer fake-token-2"] * CROWD
    assert (issuer.calls, issuer.together) == (2, 1)


def test_a_late_report_does_not_drop_the_replacement(
    kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask], *, patiently: Patiently
) -> None:
    """A caller that gets the old token's refusal late gets the current replacement: no login (INV-6)."""
    api = serve(2)
    api.held["/late"] = threading.Event()
    with ThreadPoolExecutor() as pool:
        late = pool.submit(kind.run, issuer.source, [ask(f"{api.url}/late")])
        patiently(lambda: api.asked)
        try:
            assert kind.run(issuer.source, [ask(f"{api.url}/now")])[0].status == 200
        finally:
            api.held["/late"].set()
        assert late.result()[0].status == 200
    assert issuer.calls == 2


@pytest.mark.parametrize("size", [2, 4 << 20], ids=["short answer", "long answer"])
def test_one_connection_is_enough(kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask], size: int) -> None:
    """The refused answer frees its connection before the replay needs one, whether it was read to its end or not."""
    api = serve(2)
    api.refusal = replace(api.refusal, body=b"x" * size)
    (answer,) = kind.run(issuer.source, [ask(api.url)], connections=1)
    assert answer.status == 200
    assert issuer.calls == 2


def test_an_error_of_the_source_reaches_the_caller(kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask]) -> None:
    """Without a token no request is sent, and the caller gets the source's own error with its fields."""
    api = serve()
    issuer.failure = ProviderRejected("no such client", error="invalid_client", status=401)
    with pytest.raises(ProviderRejected) as caught:
        kind.run(issuer.source, [ask(api.url)])
    assert (caught.value.error, caught.value.status) == ("invalid_client", 401)
    assert api.asked == []


def test_the_token_is_in_no_log_or_repr(
    kind: Kind, issuer: Issuer, serve: Serve, ask: type[Ask], *, caplog: pytest.LogCaptureFixture
) -> None:
    """No log line of any level, and no repr of the auth or the answer, contains the token (INV-9)."""
    api, other = serve(2), serve()
    api.redirects["/go"] = (307, other.url)
    with caplog.at_level(logging.DEBUG):
        answers = kind.run(issuer.source, [ask(f"{api.url}/a")])
        answers += kind.run(issuer.source, [ask(f"{api.url}/go")])
    seen = [caplog.text, repr(kind.auth(issuer.source)), *(repr(answer.native) for answer in answers)]
    assert "Bearer fake-token-2" in api.tokens
    assert not [text for text in seen if "fake-token-" in text]


def test_a_cancelled_caller_leaves_the_others_alone(
    loop_kind: LoopKind, issuer: Issuer, serve: Serve, ask: type[Ask], apatiently: APatiently
) -> None:
    """One of several callers that wait for a renewal is cancelled: the others get its token, from one login (INV-8)."""
    api = serve(2)
    api.crowd = 3

    async def scenario() -> list[int]:
        async with loop_kind.open(issuer.source, connections=3) as send:
            await issuer.source.atoken()
            issuer.gate.clear()
            tasks = [asyncio.create_task(send(ask(f"{api.url}/{number}"))) for number in range(3)]
            await apatiently(lambda: issuer.calls == 2)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            issuer.gate.set()
            served = [(await task).status for task in tasks[1:]]
            return [*served, *[answer.status for answer in await asyncio.gather(*(send(ask(api.url)) for _ in "abc"))]]

    assert asyncio.run(scenario()) == [200] * 5
    assert issuer.calls == 2


def test_a_cancelled_caller_frees_its_connection(
    loop_kind: LoopKind, issuer: Issuer, serve: Serve, ask: type[Ask], apatiently: APatiently
) -> None:
    """A caller is cancelled while its refused answer waits for a new token: its connection is free again (INV-8)."""
    api = serve(2)
    api.refusal = replace(api.refusal, body=b"x" * (4 << 20))

    async def scenario() -> int:
        async with loop_kind.open(issuer.source, connections=1) as send:
            await issuer.source.atoken()
            issuer.gate.clear()
            task = asyncio.create_task(send(ask(api.url)))
            await apatiently(lambda: issuer.calls == 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            issuer.gate.set()
            return (await send(ask(api.url))).status

    assert asyncio.run(scenario()) == 200


def test_one_source_in_all_clients_at_once_makes_one_login(
    every_thread_kind: list[ThreadKind], every_loop_kind: LoopKind, issuer: Issuer, serve: Serve, ask: type[Ask]
) -> None:
    """The same source used by httpx, httpx2, requests and aiohttp at once: one login, and one more after a 401."""
    api = serve(2)
    api.crowd = len(every_thread_kind) + len(every_loop_kind)
    issuer.gate.clear()

    async def scenario() -> list[int]:
        async def on_loop(kind: LoopKind) -> int:
            async with kind.open(issuer.source) as send:
                status: int = (await send(ask(api.url))).status
                return status

        def on_thread(kind: ThreadKind) -> int:
            status: int = kind.run(issuer.source, [ask(api.url)])[0].status
            return status

        threads = [asyncio.to_thread(on_thread, kind) for kind in every_thread_kind]
        tasks = [asyncio.ensure_future(step) for step in [*threads, *map(on_loop, every_loop_kind)]]
        await asyncio.to_thread(issuer.started.wait, 30)
        issuer.gate.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(scenario()) == [200] * api.crowd
    assert api.tokens.count("Bearer fake-token-1") == api.crowd
    assert api.tokens.count("Bearer fake-token-2") == api.crowd
    assert issuer.calls == 2
