"""`tokencache doctor`: each check names fault and remedy, avoids needless logins, and shows no secret."""

from __future__ import annotations

import datetime as dt
import json
import re
import socket
import ssl
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from typer.testing import CliRunner

from tokencache import BackendUnavailable, Token, TokenCache, TokenSource
from tokencache.backends.file import FileBackend
from tokencache.backends.memcached import _health as _memcached_health
from tokencache.backends.memory import MemoryBackend
from tokencache.backends.redis import _health as _redis_health
from tokencache.cli._checks import STUCK, round_trip, scratch_key
from tokencache.cli._exit import Exit
from tokencache.cli.app import app
from tokencache.cli.doctor import Result, line
from tokencache.health import ExaminedBackend, ExaminedProvider, Finding, compare_clocks, ok, warning
from tokencache.ports import Granted, LeaseGrant, Secret, Slot, Stored
from tokencache.providers.reach import reach
from tokencache.testing.fakes import FakeProvider
from tokencache.testing.token_server import TokenServer
from tokencache_qpay import QPayProvider
from tokencache_qpay.health import examine
from tokencache_qpay.provider import PRODUCTION, SANDBOX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result as Ran

    from tokencache_qpay.testing import FakeQPay

SECRET = "planted-client-secret-7f3a"
KEY = "qpay:access_token"
HOSTS = (PRODUCTION, SANDBOX)
GONE = BackendUnavailable("it is gone")
FULL = BackendUnavailable("it is out of memory")
ROOT = Path(__file__).parents[3]
run = CliRunner()


def plant(monkeypatch: pytest.MonkeyPatch, provider: object) -> None:
    """Make `third` the name of a third party's provider."""
    monkeypatch.setattr("tokencache.plugins.load_provider_factory", lambda _name: lambda: provider)


def examined(*arguments: str) -> tuple[Ran, dict[str, Finding]]:
    """Run `doctor --json`; return its exit code and the findings by subject and check."""
    ran = run.invoke(app, ["doctor", *arguments, "--json"])
    found = {
        f"{entry['subject']} {entry['check']}": Finding(entry["check"], entry["mark"], entry["seen"], entry["remedy"])
        for entry in json.loads(ran.stdout)["findings"]
    }
    return ran, found


def test_a_healthy_set_up_passes_with_one_login_at_most(fake: FakeQPay) -> None:
    """The exit code is 0. The first run logs in, as no token is stored; the next does not; `--login` does."""
    ran, found = examined("qpay")
    assert ran.exit_code == Exit.OK, ran.output
    assert {finding.mark for finding in found.values()} == {"ok"}
    assert {"qpay settings", "qpay base URL", "qpay TLS", "qpay clock", "backend reachable", "token lease"} <= set(
        found
    )
    assert "one login" in found["token token"].seen
    assert fake.logins == 1
    _, found = examined("qpay")
    assert "no login" in found["token token"].seen
    assert fake.logins == 1
    ran, _ = examined("qpay", "--login")
    assert (ran.exit_code, json.loads(ran.stdout)["logins"], fake.logins) == (0, 1, 2)


def test_no_login_prevents_a_login(fake: FakeQPay) -> None:
    """With `--no-login` the provider is not asked; the output says so, and it is not a failure."""
    ran, found = examined("qpay", "--no-login")
    assert (ran.exit_code, fake.logins) == (0, 0)
    assert found["token token"].mark == "skipped"
    assert "--no-login" in found["token token"].seen


def test_a_second_login_is_refused(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second request for a token in one examination is refused before anything is sent, and fails the check."""
    once = TokenSource.token

    def twice(source: TokenSource, timeout: float | None = None) -> Token:
        once(source, timeout)
        return source.renew(timeout)

    monkeypatch.setattr(TokenSource, "token", twice)
    ran, found = examined("qpay")
    assert (json.loads(ran.stdout)["logins"], fake.logins) == (1, 1)
    assert found["token token"].mark == "failed"


def test_a_line_has_mark_subject_check_and_remedy(fake: FakeQPay) -> None:
    """The text output has one line per check and a total at the end; without a terminal it has no colours."""
    ran = run.invoke(app, ["doctor", "qpay", "--backend", "memory://"])
    lines = ran.stdout.splitlines()
    assert ran.exit_code == 0
    (shared,) = [each for each in lines if " sharing " in each]
    assert shared.startswith("warning ")
    assert "; remedy: use file://" in shared
    assert f"{len(lines) - 1} checks: " in lines[-1]
    assert lines[-1].endswith("; 1 login")
    assert "\x1b" not in ran.stdout
    assert line(Result("qpay", ok("clock", "agrees")), 4, colours=True).startswith("\x1b[32mok")


def test_without_a_provider_only_the_backend_is_examined(fake: FakeQPay) -> None:
    """Without PROVIDER, the doctor checks backend and versions, and no token."""
    ran, found = examined()
    assert (ran.exit_code, fake.requests) == (0, 0)
    assert {name.split()[0] for name in found} == {"runtime", "backend"}


def test_missing_credentials_fail_and_the_rest_is_still_examined(
    fake: FakeQPay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without QPAY_CLIENT_SECRET the settings fail by name, the backend is still examined, and the exit code is 1."""
    monkeypatch.delenv("QPAY_CLIENT_SECRET")
    ran, found = examined("qpay")
    assert ran.exit_code == Exit.FAILED
    assert found["qpay settings"].mark == "failed"
    assert "QPAY_CLIENT_SECRET" in found["qpay settings"].seen
    assert found["backend round trip"].mark == "ok"
    assert found["token token"].mark == "skipped"


def test_a_backend_that_cannot_be_made_fails_and_names_the_variables(fake: FakeQPay) -> None:
    """A mistake in the URL is one failed finding that names option and variables; no token is fetched."""
    ran, found = examined("qpay", "--backend", "fiel:///tmp")
    assert ran.exit_code == Exit.FAILED
    assert "file" in found["backend backend"].seen
    assert "TOKENCACHE_BACKEND" in str(found["backend backend"].remedy)
    assert (found["token token"].mark, fake.logins) == ("skipped", 0)


def test_a_provider_that_cannot_be_reached_is_not_asked(
    fake: FakeQPay, unused_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """INV-7: if the provider cannot be reached, it is not asked, so no cooldown is left in the fleet."""
    monkeypatch.setenv("QPAY_BASE_URL", f"http://127.0.0.1:{unused_port}")
    ran, found = examined("qpay")
    assert ran.exit_code == Exit.FAILED
    assert found["qpay TLS"].mark == "failed"
    assert found["token token"].mark == "skipped"
    assert FileBackend(tmp_path / "tokencache").inspect(KEY).cooldown is None
    _, found = examined("qpay", "--login")
    assert found["token token"].mark == "failed"


def test_rejected_credentials_are_sent_once(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-7: a wrong password fails the token with the remedy; the next run sees the cooldown and does not ask."""
    monkeypatch.setenv("QPAY_CLIENT_SECRET", f"wrong-{SECRET}")
    ran, found = examined("qpay")
    assert ran.exit_code == Exit.FAILED
    assert (found["token token"].mark, json.loads(ran.stdout)["logins"]) == ("failed", 1)
    assert "correct the credentials" in str(found["token token"].remedy)
    _, found = examined("qpay")
    assert found["token cooldown"].mark == "failed"
    assert found["token token"].mark == "skipped"
    assert fake.logins == 1
    monkeypatch.setenv("QPAY_CLIENT_SECRET", SECRET)
    ran, found = examined("qpay")
    assert (ran.exit_code, found["token cooldown"].mark) == (0, "ok"), "it binds another identity"


def test_a_cooldown_over_a_usable_token_is_a_warning(fake: FakeQPay) -> None:
    """INV-4: while a usable token is stored, a cooldown harms no caller yet: a warning, exit code 0."""
    run.invoke(app, ["token", "qpay"])
    with fake.fail_while(status=503, headers={"Retry-After": "60"}):  # a random pause may be over at once
        failing = examined("qpay", "--login")[1]["token token"]
    assert (failing.mark, fake.logins) == ("failed", 2)
    ran, found = examined("qpay")
    assert ran.exit_code == 0
    assert found["token cooldown"].mark == "warning"
    assert found["token token"].mark == "ok"


@pytest.mark.parametrize(
    ("offset", "mark", "word"),
    [
        (600.0, "failed", " s behind "),
        (-600.0, "failed", " s ahead of "),
        (20.0, "warning", " s behind "),
        (-20.0, "warning", " s ahead of "),
        (0.0, "ok", "agrees"),
    ],
)
def test_a_clock_difference_is_reported(fake: FakeQPay, offset: float, mark: str, word: str) -> None:
    """The provider's `Date` is compared with our clock: minutes fail, seconds warn; the remedy is to synchronize."""
    fake.clock_offset = offset
    _, found = examined("qpay", "--no-login")
    assert found["qpay clock"].mark == mark
    assert word in found["qpay clock"].seen
    assert ("synchronize" in str(found["qpay clock"].remedy)) == (mark != "ok")


@pytest.mark.parametrize(
    ("theirs", "ours", "mark", "word"),
    [
        ((100.0, 101.0), (100.2, 100.4), "ok", "agrees"),
        ((100.0, 101.0), (100.9, 103.0), "ok", "agrees"),
        ((100.0, 101.0), (103.0, 103.1), "ok", "2.0 s ahead"),
        ((100.0, 101.0), (108.0, 108.1), "warning", "7.0 s ahead"),
        ((100.0, 100.0), (20.0, 20.5), "failed", "79.5 s behind"),
    ],
)
def test_rounding_and_slow_answers_are_not_a_clock_difference(
    theirs: tuple[float, float], ours: tuple[float, float], mark: str, word: str
) -> None:
    """Neither a `Date` in whole seconds nor a slow round trip counts as a clock difference."""
    finding = compare_clocks("host", theirs=theirs, ours=ours)
    assert finding.mark == mark
    assert word in finding.seen


def test_a_stuck_lease_fails_without_a_wait(fake: FakeQPay, tmp_path: Path) -> None:
    """INV-8: a lock that lasts longer than a caller waits is a failure, with the remedy; no token is fetched."""
    other = FileBackend(tmp_path / "tokencache")
    held = other.lease(KEY, "another", "doctor", None, STUCK + 30)
    assert isinstance(held, Granted)
    ran, found = examined("qpay")
    assert ran.exit_code == Exit.FAILED
    assert found["token lease"].mark == "failed"
    assert "docs/troubleshooting.md" in str(found["token lease"].remedy)
    assert (found["token token"].mark, fake.logins) == ("skipped", 0)
    assert examined("qpay", "--login")[1]["token token"].mark == "skipped"
    other.extend(held.lease, 20.0)
    assert examined("qpay", "--no-login")[1]["token lease"].mark == "ok", "a fetch is under way"


def test_a_record_of_another_identity_is_a_warning(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-10: if other credentials left a record at the key, the warning says so, and the record is not used."""
    run.invoke(app, ["token", "qpay"])
    fake.credentials["merchant"] = "rotated-secret"
    monkeypatch.setenv("QPAY_CLIENT_SECRET", "rotated-secret")
    _, found = examined("qpay", "--no-login")
    assert found["token record"].mark == "warning"
    assert found["token token"].mark == "skipped"


@pytest.mark.usefixtures("fake")
def test_the_doctor_warns_of_a_record_that_any_merchant_would_take(tmp_path: Path) -> None:
    """INV-10: a usable record of another program does not say whose token it is."""
    data = json.dumps({"accessToken": "theirs", "expiresAt": int(dt.datetime.now(dt.UTC).timestamp()) + 3600}).encode()
    assert FileBackend(tmp_path / "tokencache").commit(LeaseGrant(KEY, "them", 1, 3.0), data, 3540.0)
    _, found = examined("qpay", "--no-login")
    assert found["token record"].mark == "warning"
    assert "give each credential a key of its own" in str(found["token record"].remedy)


@pytest.mark.usefixtures("fake")
def test_the_doctor_names_what_another_program_stored(tmp_path: Path) -> None:
    """A record in a form that cannot be read is described, with the form that its writer must store."""
    assert FileBackend(tmp_path / "tokencache").commit(LeaseGrant(KEY, "them", 1, 3.0), b'"planted-token"', 60.0)
    _, found = examined("qpay", "--no-login")
    assert "it is a JSON string" in found["token record"].seen
    assert '{"accessToken": …, "expiresAt": <epoch seconds>}' in str(found["token record"].remedy)


class Third(FakeProvider):
    """A third party's provider; the test sets what its hook does."""

    def __init__(self, hook: Callable[[], Iterator[object]]) -> None:
        super().__init__("third", secret=SECRET)
        self.findings = hook

    def identity(self) -> dict[str, object]:
        """Return credentials at several places; one is too short to be hidden."""
        return {**super().identity(), "others": [{"key": Secret("planted-second-5e")}, (Secret("a"),)]}


def careless() -> Iterator[object]:
    """Yield a finding that holds a secret and a line break, then raise with the secret in the message."""
    yield warning("header", f"sent\r\nAuthorization: {SECRET}", f"look at {SECRET}")
    yield warning("key", "signed with planted-second-5e", "take another")
    raise RuntimeError(SECRET)


def strange() -> Iterator[object]:
    """Yield an object that is not a finding."""
    yield {"check": "mine"}


def stopped() -> Iterator[object]:
    """Raise one of our errors."""
    raise GONE
    yield


@pytest.mark.parametrize(
    ("hook", "seen"), [(careless, "RuntimeError"), (strange, "gave a dict"), (stopped, "it is gone")]
)
def test_a_broken_hook_is_one_failed_check(
    fake: FakeQPay, monkeypatch: pytest.MonkeyPatch, hook: Callable[[], Iterator[object]], seen: str
) -> None:
    """A third party's hook that raises or yields nonsense fails its own check; all other checks go on."""
    plant(monkeypatch, Third(hook))
    ran, found = examined("third")
    assert ran.exit_code == Exit.FAILED
    assert seen in found["third checks"].seen
    assert found["backend round trip"].mark == "ok"
    assert found["token token"].mark == "skipped"


def test_no_secret_is_shown_from_any_source(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-9: no output holds a credential, a token or the backend's password, even if a hook repeats them."""
    plant(monkeypatch, Third(careless))
    url = "redis://user:backend-password-91c2@127.0.0.1:1/0"
    outputs = [
        run.invoke(app, ["doctor", "third", *more]).output
        for more in ([], ["--json"], ["--backend", url], ["--backend", url, "--json", "--verbose"], ["--login"])
    ]
    for output in outputs:
        assert "<hidden>" in output
        for secret in (SECRET, "backend-password-91c2", "third-token", "planted-second-5e"):
            assert secret not in output
    assert "sent Authorization: <hidden>" in outputs[0], "one line, without control characters"


def test_a_provider_without_a_hook_gets_the_common_checks(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook is optional: a plain provider gets the doctor's own checks."""
    plant(monkeypatch, FakeProvider("third"))
    ran, found = examined("third")
    assert ran.exit_code == 0
    assert found["third checks"].mark == "skipped"
    assert found["token token"].mark == "ok"


def test_a_provider_that_cannot_be_made_fails_without_its_message(
    fake: FakeQPay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-9: if a third party's factory raises, the finding names only the type of the error."""

    def factory(_name: str) -> Callable[[], object]:
        def make() -> object:
            raise ValueError(SECRET)

        return make

    monkeypatch.setattr("tokencache.plugins.load_provider_factory", factory)
    ran, found = examined("third")
    assert ran.exit_code == Exit.FAILED
    assert "ValueError" in found["third settings"].seen
    assert SECRET not in ran.output


def test_our_backends_and_provider_have_the_hooks() -> None:
    """Our backends and provider fit the hook's protocols, and a backend without a hook does not."""
    assert isinstance(MemoryBackend(), ExaminedBackend)
    assert isinstance(QPayProvider("merchant", SECRET), ExaminedProvider)
    assert not isinstance(FakeProvider(), ExaminedProvider)


# --- the round trip ---------------------------------------------------------------------------------------------


class Broken(MemoryBackend):
    """A backend that breaks one law of the contract."""

    def __init__(self, law: str) -> None:
        super().__init__()
        self.law = law

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> object:  # type: ignore[override]
        """Grant the lease to every caller."""
        if self.law == "exclusion":
            return Granted(LeaseGrant(key, owner, 1, ttl))
        return super().lease(key, owner, identity, seen, ttl)

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Lose the lease."""
        return self.law != "extend" and super().extend(lease, ttl)

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Refuse the record, or raise."""
        if self.law == "full":
            raise FULL
        return self.law != "commit" and super().commit(lease, data, ttl)

    def load(self, key: str) -> Stored | None:
        """Forget the record."""
        return None if self.law == "load" else super().load(key)

    def discard(self, key: str, seen: bytes) -> bool:
        """Keep the record."""
        return self.law != "discard" and super().discard(key, seen)


@pytest.mark.parametrize(
    ("law", "word"),
    [
        ("exclusion", "another owner"),
        ("extend", "lost at once"),
        ("commit", "not stored"),
        ("load", "could not be read"),
        ("discard", "could not be deleted"),
        ("full", "out of memory"),
    ],
)
def test_the_round_trip_finds_a_store_that_breaks_a_law(law: str, word: str) -> None:
    """The check names each broken promise of a backend, and the doctor leaves no lease behind."""
    backend = Broken(law)
    finding = round_trip(backend, "scratch")  # type: ignore[arg-type]
    assert finding.mark == "failed"
    assert word in finding.seen
    assert backend.inspect("scratch").owner is None


def test_the_round_trip_survives_a_killed_doctor_and_yields_to_another() -> None:
    """A record on the doctor's key is deleted; a held lease there means that another doctor runs."""
    backend = MemoryBackend()
    left = backend.lease("scratch", "killed", "doctor", None, 60.0)
    assert isinstance(left, Granted)
    assert round_trip(backend, "scratch").mark == "skipped"
    backend.commit(left.lease, b'{"fence": 7}', 60.0)
    assert round_trip(backend, "scratch").mark == "ok"
    assert backend.load("scratch") is None


def test_the_doctor_leaves_the_fleets_record_unchanged(fake: FakeQPay, tmp_path: Path) -> None:
    """The record at the provider's key is the same, byte for byte, after an examination without a login."""
    run.invoke(app, ["token", "qpay"])
    backend = FileBackend(tmp_path / "tokencache")
    before = backend.load(KEY)
    assert examined("qpay")[0].exit_code == 0
    after = backend.load(KEY)
    assert before is not None
    assert after is not None
    assert (after.data, backend.inspect(KEY).owner) == (before.data, None)


def test_a_token_that_is_not_stored_fails(fake: FakeQPay, unused_port: int) -> None:
    """`--login` without a backend gets a token, and fails because other processes do not get it."""
    ran, found = examined("qpay", "--login", "--backend", f"redis://127.0.0.1:{unused_port}")
    assert ran.exit_code == Exit.FAILED
    assert found["backend reachable"].mark == "failed"
    assert found["token token"].mark == "failed"
    assert "not stored" in found["token token"].seen
    assert fake.logins == 1


# --- the connection to the provider -----------------------------------------------------------------------------


@contextmanager
def tls_server(certificate: trustme.LeafCert) -> Iterator[str]:
    """Serve one answer per connection over TLS on loopback; yield the URL."""
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(trust)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                try:
                    with trust.wrap_socket(plain, server_side=True) as secured:
                        if secured.recv(4096):
                            secured.sendall(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                except OSError:
                    plain.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Return a client's settings that trust only this authority."""
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    return trust


@pytest.mark.parametrize(("days", "mark"), [(300, "ok"), (3, "warning")])
def test_a_trusted_certificate_passes_with_its_end(days: int, mark: str) -> None:
    """A trusted certificate passes, with the days until its end; one that ends within two weeks is a warning."""
    authority = trustme.CA()
    ends = dt.datetime.now(tz=dt.UTC) + dt.timedelta(days=days, hours=1)
    with tls_server(authority.issue_cert("127.0.0.1", not_after=ends)) as url:
        found = {finding.check: finding for finding in reach(url, verify=trusting(authority))}
    assert found["TLS"].mark == mark
    assert found["TLS"].seen.endswith(f"certificate valid for {days} days")
    assert (found["clock"].mark, "without a Date" in found["clock"].seen) == ("skipped", True)


def test_a_certificate_of_an_unknown_authority_fails() -> None:
    """An unknown authority fails the check with the reason; nothing is sent after that."""
    with tls_server(trustme.CA().issue_cert("127.0.0.1")) as url:
        found = {finding.check: finding for finding in reach(url, verify=trusting(trustme.CA()))}
    assert found["TLS"].mark == "failed"
    assert "certificate" in found["TLS"].seen
    assert found["clock"].mark == "skipped"


def test_a_host_without_tls_fails(fake: FakeQPay) -> None:
    """If an https:// port speaks plain HTTP, the finding says so."""
    found = {finding.check: finding for finding in reach(fake.url.replace("http:", "https:"))}
    assert found["TLS"].mark == "failed"


def test_the_connection_check_sends_no_credential() -> None:
    """INV-9: user, password and query of an address are not sent, as they may hold a credential."""
    planted = "hunter2-planted"
    with TokenServer() as server:
        address = server.url.replace("http://", f"http://user:{planted}@")
        found = {finding.check: finding for finding in reach(f"{address}/token?key={planted}")}
    (asked,) = server.requests
    assert (asked.method, asked.path, found["TLS"].mark) == ("HEAD", "/token", "ok")
    assert "authorization" not in asked.headers
    assert planted not in f"{asked.headers} {found}"


def test_a_host_name_that_does_not_resolve_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure is the name; checks that need an address are skipped."""

    def lookup(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    found = [(finding.check, finding.mark) for finding in reach("https://merchant.example")]
    assert found == [("name resolution", "failed"), ("TLS", "skipped"), ("clock", "skipped")]


def test_behind_a_proxy_only_the_answer_counts(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    """With a proxy set, the doctor neither resolves nor connects; only the request through the proxy counts."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{unused_port}")
    found = {finding.check: finding for finding in reach("https://merchant.example")}
    assert [found[name].mark for name in ("name resolution", "TLS", "clock")] == ["skipped", "skipped", "failed"]
    assert "HTTPS_PROXY" in str(found["clock"].remedy)


# --- the servers' own settings --------------------------------------------------------------------------------


def test_a_memcached_with_a_small_item_size_is_a_warning() -> None:
    """An item size too small for a long JWT is reported in advance, with the option to set."""
    figures = {"limit_maxbytes": str(64 << 20), "evictions": "0"}
    small, usual = (
        _memcached_health._evictions("host", figures, {"item_size_max": str(n)}) for n in (1 << 15, 1 << 20)
    )
    assert (small.mark, usual.mark) == ("warning", "ok")
    assert "-I 64k" in str(small.remedy)


def test_a_memcached_that_hides_its_settings_does_not_fail() -> None:
    """If a server does not report its settings, the round trip checks it instead."""
    marks = [_memcached_health._cas("host", settings).mark for settings in ({}, {"cas_enabled": "no"})]
    assert marks == ["skipped", "failed"]


@pytest.mark.parametrize(
    ("about", "mark", "word"),
    [
        ({"redis_version": "4.0.14"}, "failed", "Redis 4.0.14"),
        ({"redis_version": "5.0.0"}, "ok", "Redis 5.0.0"),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.0"}, "ok", "Valkey 8.1.0"),
        ({}, "ok", "Redis ?"),
    ],
)
def test_an_old_redis_is_reported(about: dict[str, str], mark: str, word: str) -> None:
    """Redis before 5 has no streams and fails by its version; Valkey counts by its own version."""
    finding = _redis_health._server(about, "host", "8.1")
    assert (finding.mark, word in finding.seen) == (mark, True)


def test_the_round_trip_uses_a_server_that_answers() -> None:
    """With several servers, the doctor's own key may lie on one that is down: then it uses another name."""

    class Several(MemoryBackend):
        def inspect(self, key: str) -> Slot:
            if key in {"k:doctor", "k:doctor1"}:
                raise GONE
            return super().inspect(key)

    assert scratch_key(Several(), "k") == "k:doctor2"
    assert scratch_key(MemoryBackend(), "k") == "k:doctor"


# --- documents --------------------------------------------------------------------------------------------------


def test_each_page_that_a_remedy_names_has_its_heading() -> None:
    """The headings of docs/troubleshooting.md that remedies name exist, as do the three texts that link there."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r"docs/troubleshooting\.md, ([A-Z][\w ]+)", sources))
    assert len(named) >= 3
    for heading in named | {"Failed to get QPay access token", "Redis connection error", "Cache not working"}:
        assert f"\n## {heading}\n" in page


def test_the_documented_hook_works() -> None:
    """The documented example of a plugin's hook runs, and the doctor calls it."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Callable[[], ExaminedProvider]] = {}
    exec(code, names)
    provider = names["OrdersProvider"]()
    assert isinstance(provider, ExaminedProvider)
    assert next(iter(provider.findings())).mark == "ok"


@pytest.mark.parametrize("command", ["doctor", "verify", "tail"])
def test_each_command_has_its_help(command: str) -> None:
    """`--help` of the program lists the command, and `--help` of the command lists its options."""
    wide = {"COLUMNS": "200", "NO_COLOR": "1"}
    assert f" {command} " in run.invoke(app, ["--help"], env=wide).stdout
    ran = run.invoke(app, [command, "--help"], env=wide)
    assert ran.exit_code == 0
    assert "--backend" in ran.stdout
    assert "--json" in ran.stdout


# --- QPay -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "password", "url", "marks"),
    [
        ("merchant", SECRET, PRODUCTION, ["ok", "ok"]),
        ("merchant", SECRET, SANDBOX, ["ok", "ok"]),
        ("TEST_MERCHANT", SECRET, SANDBOX, ["ok", "ok"]),
        ("TEST_MERCHANT", SECRET, PRODUCTION, ["ok", "warning"]),
        ("merchant", f'"{SECRET}"', PRODUCTION, ["warning", "ok"]),
        (" merchant", SECRET, PRODUCTION, ["warning", "ok"]),
        ("merchant", f"{SECRET}'", PRODUCTION, ["ok", "ok"]),
    ],
)
def test_suspicious_qpay_settings_are_reported(user: str, password: str, url: str, marks: list[str]) -> None:
    """Quotes or blanks round a credential, and the sandbox's merchant in production, are warnings; none is shown."""
    found = examine(base_url=url, client_id=user, client_secret=password, hosts=HOSTS)
    first = [next(found), next(found)]
    assert [finding.mark for finding in first] == marks
    assert SECRET not in str(first)


def test_the_doctor_uses_the_shared_backend(fake: FakeQPay, tmp_path: Path) -> None:
    """A token that the doctor fetched is shared: the next caller on that backend does not log in."""
    examined("qpay", "--backend", tmp_path.joinpath("fleet").as_uri())
    with TokenCache(tmp_path.joinpath("fleet").as_uri()) as cache:
        cache.source("qpay").token()
    assert fake.logins == 1


def test_the_doctor_names_the_configuration_file(fake: FakeQPay, tmp_path: Path) -> None:
    """A found file decides where the credentials go, so the report names it."""
    assert fake.url
    _, found = examined()
    assert found["runtime configuration"].seen == "variables and defaults, no file"
    (tmp_path / "my.toml").write_text("")
    _, found = examined("--config", str(tmp_path / "my.toml"))
    assert found["runtime configuration"].seen == str(tmp_path / "my.toml")
