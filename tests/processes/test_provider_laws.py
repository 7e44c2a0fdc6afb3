"""The laws of providers can fail: each typical defect of a provider is caught by the law that forbids it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from tokencache.testing.provider_contract import ProviderContract

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOUND: Final = '''
"""A provider written by hand, without the base class that guards its edge; and one subclass for each defect."""

import asyncio
import logging
import os
import time
from dataclasses import replace

import httpx
import pytest

from tokencache.errors import ConfigurationError, ProviderRejected, ProviderUnavailable
from tokencache.ports import Secret
from tokencache.providers.oauth_response import date_of, raise_for_error, read_json, token_from_mapping
from tokencache.testing.provider_contract import ProviderContract


class Sound:
    """Does everything right."""

    name = "sound"
    follow = False

    def __init__(self, url, secret, scope=""):
        self.url, self.secret, self.scope = url, secret, scope

    def identity(self):
        return {"issuer": self.url, "scope": self.scope, "secret": Secret(self.secret)}

    def fetch(self, context):
        before = time.time()
        try:
            with httpx.Client(trust_env=False, timeout=context.timeout, follow_redirects=self.follow) as client:
                response = client.post(f"{self.url}/token", headers={"Authorization": f"Bearer {self.secret}"})
        except httpx.HTTPError:
            response = None
        return self.read(response, before)

    async def afetch(self, context):
        before = time.time()
        options = {"trust_env": False, "timeout": context.timeout, "follow_redirects": self.follow}
        try:
            async with httpx.AsyncClient(**options) as client:
                response = await client.post(f"{self.url}/token", headers={"Authorization": f"Bearer {self.secret}"})
        except httpx.HTTPError:
            response = None
        return self.read(response, before)

    def read(self, response, before):
        if response is None:
            raise ProviderUnavailable("[sound] the server did not answer")
        self.refuse(response)
        return self.token(response, before)

    def refuse(self, response):
        raise_for_error(response, provider=self.name, secrets=(self.secret,))

    def token(self, response, before):
        fields = read_json(response, provider=self.name, secrets=(self.secret,))
        return token_from_mapping(fields, provider=self.name, date=date_of(response), before_wall=before)[0]

    def __repr__(self):
        return "<Sound>"
'''

FOOT: Final = """

class Test{name}(ProviderContract):
    def make_provider(self, server, secret):
        return {name}(server.url, secret)

    def make_others(self, server, secret):
        return {{"scope": {name}(server.url, secret, "orders")}}
"""

DEFECTS: Final = {
    "OtherField": (
        "test_both_halves_give_the_same_token",
        """
    async def afetch(self, context):
        return replace(await super().afetch(context), token_type="MAC")
""",
    ),
    "OtherPath": (
        "test_both_halves_give_the_same_token",
        """
    async def afetch(self, context):
        self.url += "/v2"
        return await super().afetch(context)
""",
    ),
    "Hoarder": (
        "test_each_fetch_asks_the_server",
        """
    def fetch(self, context):
        return context.previous or super().fetch(context)

    async def afetch(self, context):
        return context.previous or await super().afetch(context)
""",
    ),
    "OwnLifetime": (
        "test_the_lifetime_is_that_of_the_answer",
        """
    def token(self, response, before):
        return replace(super().token(response, before), expires_at=before + 3600)
""",
    ),
    "CountsFromTheAnswer": (
        "test_the_lifetime_is_that_of_the_answer",
        """
    def token(self, response, before):
        return super().token(response, time.time() + 1)
""",
    ),
    "Unstable": (
        "test_the_identity_is_the_same_for_equal_settings",
        """
    def identity(self):
        return {**super().identity(), "instance": id(self)}
""",
    ),
    "Learning": (
        "test_the_identity_is_the_same_for_equal_settings",
        """
    fetched = 0

    def identity(self):
        return {**super().identity(), "fetched": self.fetched}

    def fetch(self, context):
        self.fetched += 1
        return super().fetch(context)
""",
    ),
    "Hashing": (
        "test_the_identity_is_the_same_in_another_process",
        """
    def identity(self):
        return {**super().identity(), "scopes": str({str(scope) for scope in range(40)})}
""",
    ),
    "Numbered": (
        "test_the_identity_is_the_same_in_another_process",
        """
    def identity(self):
        return {**super().identity(), "process": os.getpid()}
""",
    ),
    "Scopeless": (
        "test_whatever_makes_another_token_makes_another_identity",
        """
    def identity(self):
        return {"issuer": self.url, "secret": Secret(self.secret)}
""",
    ),
    "Hostless": (
        "test_whatever_makes_another_token_makes_another_identity",
        """
    def identity(self):
        return {"scope": self.scope, "secret": Secret(self.secret)}
""",
    ),
    "Secretless": (
        "test_whatever_makes_another_token_makes_another_identity",
        """
    def identity(self):
        return {"issuer": self.url, "scope": self.scope}
""",
    ),
    "OpenIdentity": (
        "test_the_identity_shows_no_secret",
        """
    def identity(self):
        return {**super().identity(), "secret": self.secret}
""",
    ),
    "OpenRepr": (
        "test_the_provider_shows_no_secret",
        """
    def __repr__(self):
        return f"<Sound {self.secret!r}>"
""",
    ),
    "OpenLog": (
        "test_the_log_shows_no_secret",
        """
    def read(self, response, before):
        logging.getLogger("sound").debug("asked with %s", self.secret)
        return super().read(response, before)
""",
    ),
    "Quoting": (
        "test_a_secret_that_the_server_repeats_stays_hidden",
        """
    def refuse(self, response):
        raise_for_error(response, provider=self.name)
""",
    ),
    "OpenCause": (
        "test_a_refusal_is_permanent",
        """
    def refuse(self, response):
        try:
            super().refuse(response)
        except ProviderRejected as error:
            raise error from ValueError(response.request.headers["authorization"])
""",
    ),
    "OpenContext": (
        "test_a_refusal_is_permanent",
        """
    def refuse(self, response):
        try:
            raise ValueError(response.request.headers["authorization"])
        except ValueError:
            try:
                super().refuse(response)
            except ProviderRejected as error:
                raise error from None
""",
    ),
    "Hopeful": (
        "test_a_refusal_is_permanent",
        """
    def read(self, response, before):
        if response is not None and response.is_error:
            raise ProviderUnavailable("[sound] failed")
        return super().read(response, before)
""",
    ),
    "Stubborn": (
        "test_a_refusal_is_permanent",
        """
    def fetch(self, context):
        try:
            return super().fetch(context)
        except ProviderRejected:
            return super().fetch(context)

    async def afetch(self, context):
        try:
            return await super().afetch(context)
        except ProviderRejected:
            return await super().afetch(context)
""",
    ),
    "Impatient": (
        "test_a_pause_in_seconds_is_handed_on",
        """
    def refuse(self, response):
        response.headers.pop("retry-after", None)
        super().refuse(response)
""",
    ),
    "SecondsOnly": (
        "test_a_pause_until_a_date_is_handed_on",
        """
    def refuse(self, response):
        if not response.headers.get("retry-after", "0").isdigit():
            del response.headers["retry-after"]
        super().refuse(response)
""",
    ),
    "OwnClock": (
        "test_a_pause_until_a_date_is_handed_on",
        """
    def refuse(self, response):
        response.headers.pop("date", None)
        super().refuse(response)
""",
    ),
    "Defeatist": (
        "test_a_failing_server_is_unavailable",
        """
    def refuse(self, response):
        if response.is_error:
            raise ProviderRejected("[sound] refused", status=response.status_code)
""",
    ),
    "Credulous": (
        "test_a_token_in_an_error_is_not_taken",
        """
    def refuse(self, response):
        pass
""",
    ),
    "Unguarded": (
        "test_an_answer_without_a_token_is_unavailable",
        """
    def token(self, response, before):
        response.json()["access_token"].strip()
        return super().token(response, before)
""",
    ),
    "PageQuoter": (
        "test_a_page_is_unavailable",
        """
    def token(self, response, before):
        if "html" in response.headers.get("content-type", ""):
            raise ProviderUnavailable(f"[sound] odd: {response.text}")
        return super().token(response, before)
""",
    ),
    "HalfReader": (
        "test_half_a_document_is_unavailable",
        """
    def token(self, response, before):
        response.json()
        return super().token(response, before)
""",
    ),
    "OpenCut": (
        "test_a_body_that_is_cut_off_is_unavailable",
        """
    def read(self, response, before):
        if response is None:
            raise ConnectionError
        return super().read(response, before)
""",
    ),
    "OpenReset": (
        "test_a_broken_connection_is_unavailable",
        """
    def read(self, response, before):
        if response is None:
            raise ConnectionError
        return super().read(response, before)
""",
    ),
    "OpenRefusal": (
        "test_a_server_that_does_not_listen_is_unavailable",
        """
    def read(self, response, before):
        if response is None:
            raise ConfigurationError("[sound] the server did not answer")
        return super().read(response, before)
""",
    ),
    "Patient": (
        "test_a_silent_server_is_given_up_by_the_deadline",
        """
    def fetch(self, context):
        return super().fetch(replace(context, deadline=context.deadline + 20))

    async def afetch(self, context):
        return await super().afetch(replace(context, deadline=context.deadline + 20))
""",
    ),
    "Follower": ("test_a_redirect_takes_no_credential_along", "\n    follow = True\n"),
    "LateRefuser": (
        "test_a_redirect_takes_no_credential_along",
        """
    follow = True

    def read(self, response, before):
        if response is not None and response.history:
            raise ProviderUnavailable("[sound] moved")
        return super().read(response, before)
""",
    ),
    "Uncancellable": (
        "test_a_cancelled_fetch_leaves_nothing_behind",
        """
    async def afetch(self, context):
        try:
            return await super().afetch(context)
        except asyncio.CancelledError:
            raise ProviderUnavailable("[sound] cancelled") from None
""",
    ),
    "Littering": (
        "test_a_cancelled_fetch_leaves_nothing_behind",
        """
    async def afetch(self, context):
        self.running = asyncio.ensure_future(super().afetch(context))
        return await asyncio.shield(self.running)
""",
    ),
    "Spoiled": (
        "test_a_cancelled_fetch_leaves_nothing_behind",
        """
    broken = False

    async def afetch(self, context):
        if self.broken:
            raise ProviderUnavailable("[sound] still cancelled")
        self.broken = True
        token = await super().afetch(context)
        self.broken = False
        return token
""",
    ),
}


def source() -> Iterator[str]:
    """Yield a test module: the sound provider, and each defect, under all laws."""
    yield SOUND
    yield FOOT.format(name="Sound")
    for name, (_, body) in DEFECTS.items():
        yield f"\n\nclass {name}(Sound):{body}"
        yield FOOT.format(name=name)


def run(folder: Path, *nodes: str) -> dict[str, set[str]]:
    """Run parts of that module in a new process; return the names of the laws that failed, by class."""
    (folder / "test_them.py").write_text("".join(source()))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", *nodes],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST_"))},
    )
    assert ran.returncode in {0, 1}, ran.stdout[-2000:] + ran.stderr[-2000:]
    failed: dict[str, set[str]] = {}
    for line in ran.stdout.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            _, name, law = line.split(" ")[1].split("::")
            failed.setdefault(name.removeprefix("Test"), set()).add(law.partition("[")[0])
    return failed


@pytest.mark.slow
def test_a_sound_provider_keeps_every_law(tmp_path: Path) -> None:
    """The laws need only the protocol: a provider without a base class of ours keeps them."""
    assert run(tmp_path, "test_them.py::TestSound") == {}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_defect_breaks_its_law(tmp_path: Path) -> None:
    """INV-1, INV-7, INV-8, INV-9, INV-10: the kit finds each defect that it promises to find."""
    failed = run(tmp_path, *(f"test_them.py::Test{name}::{law}" for name, (law, _) in DEFECTS.items()))
    assert failed == {name: {law} for name, (law, _) in DEFECTS.items()}


def test_each_law_is_broken_by_a_defect() -> None:
    """At least one defect breaks each law of the kit: a new law comes with its defect."""
    laws = {name for name in vars(ProviderContract) if name.startswith("test_")}
    assert laws == {law for law, _ in DEFECTS.values()}
