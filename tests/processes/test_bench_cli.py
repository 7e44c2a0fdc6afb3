"""`tokencache bench`: its figures agree, it logs in rarely, and its own key is gone at the end."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from typer.testing import CliRunner

from tokencache import BackendUnavailable, TokenCacheError
from tokencache.backends.file import FileBackend
from tokencache.backends.memory import MemoryBackend
from tokencache.cli import bench
from tokencache.cli._bench_figures import BenchReport, Figures, Percentiles, Stampede
from tokencache.cli._bench_picture import LEFT, RIGHT, draw, save
from tokencache.cli._bench_worker import Drill, PlayedProvider
from tokencache.cli._checks import clear
from tokencache.cli._exit import Exit
from tokencache.cli._fleet import FleetReport
from tokencache.cli._setup import Setup
from tokencache.cli.app import app
from tokencache.ports import Cooldown, FetchContext, Granted, Slot
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokencache_qpay.testing import FakeQPay

SECRET = "planted-client-secret-7f3a"
KEY = "qpay:access_token"
OWN = (f"{KEY}:bench", f"{KEY}:bench:cold")
SVG = "{http://www.w3.org/2000/svg}"
PATIENCE = 30.0
SMALL = ("-p", "2", "-t", "2")
run = CliRunner()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rounds: the speed is not tested."""
    monkeypatch.setattr(bench, "ROUNDS", 200)
    monkeypatch.setattr(bench, "SHARED_CALLS", 10)


def benched(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run `bench --json` and return exit code, document and stderr."""
    ran = run.invoke(app, ["bench", "--json", *SMALL, *arguments])
    assert SECRET not in ran.output
    return ran.exit_code, json.loads(ran.stdout or "{}"), ran.stderr


def left_behind(folder: Path) -> list[Slot]:
    """Return the files at the bench's keys in a folder of the file backend."""
    with closing(FileBackend(folder)) as backend:
        slots = [backend.inspect(key) for key in OWN]
    return [slot for slot in slots if slot != Slot(None)]


# --- figures ----------------------------------------------------------------------------------------------------


def test_the_figures_agree_with_each_other(fake: FakeQPay) -> None:
    """The speed-up is first over cached, percentiles grow, one provider call serves the whole stampede (INV-2)."""
    code, found, _ = benched("qpay")
    assert (code, found["provider"], found["logins"], fake.logins) == (Exit.OK, "qpay", 1, 1)
    (figures,) = found["backends"]
    assert figures["speedup"] == figures["first"] / figures["cached"]
    stampede = figures["stampede"]
    for spread, calls in (
        (figures["percentiles"]["cached"], 200),
        (figures["percentiles"]["shared"], 10),
        (stampede["beyond"], 4),
    ):
        assert spread["calls"] == calls
        assert 0 <= spread["p50"] <= spread["p90"] <= spread["p99"] <= spread["p99.9"]
    assert (stampede["callers"], stampede["served"], stampede["provider_calls"]) == (4, 4, 1)
    assert stampede["fetch"] >= min(figures["first"], bench.LONGEST_PLAY), "the login that is played takes as long"
    assert figures["note"] is None


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (0, 0, 0, 0)), (2, (1, 1, 1, 1)), (10, (5, 9, 9, 9)), (100, (50, 90, 99, 99)), (1000, (500, 900, 990, 999))],
)
def test_percentiles_of_few_and_of_many_calls(count: int, expected: tuple[float, ...]) -> None:
    """Each is the time of a real call, the longer of two: no figure looks faster than its call was."""
    found = Percentiles.of([float(number) for number in reversed(range(count))])
    assert (found.calls, tuple(found.at.values())) == (count, expected)


def test_the_text_shows_three_lines_and_then_percentiles(fake: FakeQPay) -> None:
    """First, cached and speed-up come first, in this order; percentiles and the stampede below; no secret (INV-9)."""
    ran = run.invoke(app, ["bench", "qpay", *SMALL])
    assert ran.exit_code == Exit.OK
    lines = ran.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["first", "cached", "speed-up"]
    assert lines[5].split() == ["p50", "p90", "p99", "p99.9"]
    assert [line.split()[0] for line in lines[6:9]] == ["cached", "shared", "stampede"]
    assert "2 x 2 cold callers, 4 served, 1 provider call of" in lines[9]
    assert SECRET not in ran.output


def test_without_a_provider_a_fake_login_is_measured(fake: FakeQPay, tmp_path: Path) -> None:
    """Without a provider the login is a fake of 250 ms, a user's own service gets no request, and stderr is empty."""
    code, found, said = benched("--backend", (tmp_path / "t").as_uri())
    assert (code, found["provider"], found["logins"]) == (Exit.OK, "a fake with a login of 250 ms", 1)
    assert (fake.requests, said) == (0, "")
    (figures,) = found["backends"]
    assert figures["first"] >= 0.25, "the fake does not answer before"
    assert not list((tmp_path / "t").glob("*.json")), "no record stays"


def test_without_a_provider_no_qpay_is_needed(tmp_path: Path) -> None:
    """The bench and its processes run where `tokencache_qpay` cannot be imported: the fake login is the bench's own."""
    (tmp_path / "tokencache_qpay.py").write_text("raise ModuleNotFoundError('not here', name='tokencache_qpay')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "tokencache", "bench", "--json", *SMALL, "-b", (tmp_path / "t").as_uri()]
    absent = subprocess.run([sys.executable, "-c", "import tokencache_qpay"], check=False, env=environment)
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert absent.returncode == 1
    assert (ran.returncode, ran.stderr) == (Exit.OK, "")
    (figures,) = json.loads(ran.stdout)["backends"]
    assert (figures["stampede"]["served"], figures["stampede"]["provider_calls"]) == (4, 1)


def test_backends_are_compared_and_memory_has_only_in_process_figures(fake: FakeQPay, tmp_path: Path) -> None:
    """One announced login per backend; memory:// has its in-process figures, and a note in place of the others."""
    code, found, said = benched("qpay", "-b", "memory://", "-b", (tmp_path / "t").as_uri())
    assert (code, found["logins"], fake.logins) == (Exit.OK, 2, 2)
    memory, files = found["backends"]
    assert (memory["percentiles"]["shared"], memory["stampede"]) == (None, None)
    assert "do not share" in memory["note"]
    assert files["stampede"]["provider_calls"] == 1
    assert said.startswith("tokencache: qpay is asked for 2 tokens at most")
    ran = run.invoke(app, ["bench", "-b", "memory://"])
    assert "do not share" in ran.stdout
    assert "cold callers" not in ran.stdout


def test_logins_are_announced_before_the_first(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The announcement comes before any login, so a reader can still interrupt."""
    asked: list[int] = []
    monkeypatch.setattr(bench, "complain", lambda _text: asked.append(fake.requests))
    benched("qpay")
    assert (asked, fake.logins) == ([0], 1)


# --- gentle -----------------------------------------------------------------------------------------------------


def test_the_fleets_own_record_is_unchanged_and_the_benchs_is_deleted(fake: FakeQPay, tmp_path: Path) -> None:
    """The live record is the same, byte for byte; record, lease and cooldown of the bench's keys are gone."""
    run.invoke(app, ["token", "qpay"])
    folder = tmp_path / "tokencache"
    with closing(FileBackend(folder)) as backend:
        before = backend.load(KEY)
    code, _, _ = benched("qpay")
    with closing(FileBackend(folder)) as backend:
        after = backend.load(KEY)
    assert code == Exit.OK
    assert before is not None
    assert after is not None
    assert (after.data, fake.logins) == (before.data, 2)
    assert left_behind(folder) == []
    assert run.invoke(app, ["token", "qpay"]).exit_code == Exit.OK
    assert fake.logins == 2, "the fleet goes on with its token"


def test_a_failed_login_exits_as_in_any_command_and_leaves_no_cooldown(
    fake: FakeQPay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rejected credentials exit 3 after one login; no cooldown stays at the bench's key or the fleet's."""
    monkeypatch.setenv("QPAY_CLIENT_SECRET", "wrong-secret")
    code, found, said = benched("qpay", "-b", "file://", "-b", "memory://")
    assert (code, found, fake.logins) == (Exit.REJECTED, {}, 1)
    assert "wrong-secret" not in said
    assert left_behind(tmp_path / "tokencache") == []
    with closing(FileBackend(tmp_path / "tokencache")) as backend:
        assert backend.inspect(KEY) == Slot(None)


def test_a_cooldown_of_the_fleet_is_respected(fake: FakeQPay) -> None:
    """INV-7: during a cooldown of the fleet, the bench sends no request, names the remaining time, and exits 4."""
    fake.fail_next(1, status=429, headers={"Retry-After": "120"})
    assert run.invoke(app, ["token", "qpay"]).exit_code == Exit.UNAVAILABLE
    before = fake.requests
    code, found, said = benched("qpay")
    assert (code, found, fake.requests) == (Exit.UNAVAILABLE, {}, before)
    assert "a cooldown holds for" in said


def test_a_refresh_token_is_not_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotating refresh token belongs to the fleet: the bench refuses, exit 2, before it sends or stores anything."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "tokencache.toml"
    file.write_text(
        '[providers.acme]\ntype = "refresh_token"\ntoken_url = "https://127.0.0.1:1/token"\nclient_id = "c"\n'
        'refresh_token = { env = "ACME_REFRESH" }\n'
    )
    monkeypatch.setenv("ACME_REFRESH", "planted-refresh-token")
    code, found, said = benched("acme", "--config", str(file))
    assert (code, found) == (Exit.USAGE, {})
    assert "spends the refresh token" in said
    assert "planted-refresh-token" not in said
    assert not (tmp_path / "tokencache").exists()


# --- errors -----------------------------------------------------------------------------------------------------


def test_an_unreachable_backend_exits_4_before_any_login(fake: FakeQPay, unused_port: int) -> None:
    """The bench checks all backends first: exit 4 with the remedy, no login on the good one, the password hidden."""
    away = f"redis://user:planted-password-3c@127.0.0.1:{unused_port}/0"
    code, found, said = benched("qpay", "-b", "file://", "-b", away)
    assert (code, found, fake.requests) == (Exit.UNAVAILABLE, {}, 0)
    assert f"redis at 127.0.0.1:{unused_port}" in said
    assert "docs/troubleshooting.md" in said
    assert "planted-password-3c" not in said


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("qpya",), "did you mean"),
        (("qpay", "-b", "fiel://"), "did you mean"),
        (("qpay", "--picture", "/nowhere/at/all.svg"), "a folder that exists"),
        (("qpay", "-p", "0"), "Invalid value"),
    ],
)
def test_wrong_usage_exits_2_without_a_login(fake: FakeQPay, arguments: tuple[str, ...], word: str) -> None:
    """Unknown provider or backend, no folder for the picture, a bad number: exit 2, the reason, and no login."""
    code, found, said = benched(*arguments)
    assert (code, found, fake.requests) == (Exit.USAGE, {}, 0)
    assert word in said


def test_a_store_that_fails_in_the_middle_is_reported(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that was not stored does not count as a figure of this backend: exit 4, and the store's own problem."""

    def refuse(*_: object) -> bool:
        message = "the disk is full"
        raise BackendUnavailable(message)

    monkeypatch.setattr(FileBackend, "commit", refuse)
    code, found, said = benched("qpay")
    assert (code, found, fake.logins) == (Exit.UNAVAILABLE, {}, 1)
    assert "the disk is full; the bench needs a backend that answers" in said


def test_a_failed_deletion_is_reported(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails at the end costs no figures: the remaining keys are named, and that they end by themselves."""

    def refuse(*_: object) -> bool:
        message = "the store is gone"
        raise BackendUnavailable(message)

    monkeypatch.setattr(FileBackend, "discard", refuse)
    code, found, said = benched("qpay")
    assert (code, len(found["backends"])) == (Exit.OK, 1)
    assert f"cannot delete the bench's own records at {KEY}:bench, which end by themselves: the store is gone" in said


def test_short_tokens_are_not_measured(fake: FakeQPay, tmp_path: Path) -> None:
    """A token that ends in the middle would look like a slow store: exit 1, one login, the reason, no key left."""
    fake.lifetime = 5.0
    code, found, said = benched("qpay")
    assert (code, found, fake.logins) == (Exit.FAILED, {}, 1)
    assert "which is too short to measure" in said
    assert left_behind(tmp_path / "tokencache") == []


def test_sealed_records_are_measured_sealed(fake: FakeQPay, tmp_path: Path) -> None:
    """With a configuration that names backends and seals by the credential, all is measured, and no key is left."""
    pytest.importorskip("cryptography")
    file = tmp_path / "tokencache.toml"
    folder = tmp_path / "sealed"
    file.write_text(
        f'namespace = "shop:"\nbackend = "local"\n[backends.local]\nurl = "{folder.as_uri()}"\n'
        "[encryption]\nfrom_provider = true\n"
    )
    for provider in ((), ("qpay",)):
        code, found, _ = benched(*provider, "--config", str(file))
        assert code == Exit.OK
        assert found["backends"][0]["stampede"]["served"] == 4
        assert found["backends"][0]["backend"] == folder.as_uri()
    assert not list(folder.glob("*.json"))
    assert any(path.name.startswith("shop-") for path in folder.iterdir()), "the fake's key is in the namespace"


def test_progress_is_shown_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a line shows the progress and is gone at the end; a pipe gets no such line."""

    class Terminal(io.StringIO):
        """A text that reports itself as a terminal."""

        def isatty(self) -> bool:
            """Return `True`."""
            return True

    for kind, said in ((Terminal, "\r\x1b[2K  reading …\r\x1b[2K"), (io.StringIO, "")):
        text = kind()
        monkeypatch.setattr(sys, "stderr", text)
        with bench._progress() as at_work:
            at_work("reading")
        assert text.getvalue() == said


class Mute:
    """A fleet whose callers get no token."""

    errors: tuple[str, ...] = ("no way",)

    def __init__(self, *_: object, **__: object) -> None:
        """Start nothing."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End nothing."""

    def muster(self, _: object) -> None:
        """Be ready."""

    def run(self, _: object) -> FleetReport:
        """Report only errors."""
        return FleetReport(errors=list(self.errors))


@pytest.mark.parametrize(("errors", "word"), [(("no way",), "1 callers .* no way"), ((), "no process logged in")])
def test_a_stampede_without_tokens_is_an_error(
    monkeypatch: pytest.MonkeyPatch, errors: tuple[str, ...], word: str
) -> None:
    """Callers without a token give the first one's error; a stampede without a fetch is also an error."""
    monkeypatch.setattr(Mute, "errors", errors)
    monkeypatch.setattr(bench, "Fleet", Mute)
    setup = Setup(None, "memory://")
    place = bench.Place(setup, setup.provider(played()), setup.url(), "key")
    with pytest.raises(TokenCacheError, match=word):
        bench._stampede(place, bench.Size(1, 1, None), login=0.0, token=played().fetch(context()))


def test_the_stampede_shows_the_wait_beyond_the_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller's wait is shown without the slowest login, and is never negative."""

    class Served(Mute):
        """A fleet whose callers were served, one of them before the slowest login ended."""

        def run(self, _: object) -> FleetReport:
            """Report two logins and three calls."""
            return FleetReport(calls=3, fetches=[0.25, 0.125], times=[0.375, 0.125, 0.25])

    monkeypatch.setattr(bench, "Fleet", Served)
    setup = Setup(None, "memory://")
    place = bench.Place(setup, setup.provider(played()), setup.url(), "key")
    token = played().fetch(context())
    found = bench._stampede(place, bench.Size(1, 3, None), login=0.0, token=token)
    assert (found.served, found.provider_calls, found.fetch) == (3, 2, 0.25)
    assert found.beyond == Percentiles(3, {"p50": 0.0, "p90": 0.125, "p99": 0.125, "p99.9": 0.125})


# --- its own keys -----------------------------------------------------------------------------------------------


def drill(**changed: Any) -> Drill:  # noqa: ANN401  (any setting)
    """Return the orders for a process on memory://."""
    given: dict[str, Any] = {
        "backend": "memory://",
        "config": None,
        "key": "cold",
        "secret": "planted-drill-secret",
        "login": 0.0,
        "size": 1200,
        "threads": 1,
        "patience": 1.0,
    }
    return Drill(**(given | changed))


def played(**changed: Any) -> PlayedProvider:  # noqa: ANN401  (any setting)
    """Return the provider of such a process."""
    orders = drill(**changed)
    return PlayedProvider(orders.login, orders.size, orders.secret)


def context() -> FetchContext:
    """Return a provider's fetch context."""
    return FetchContext(None, time.monotonic() + PATIENCE, "cold", time.monotonic)


def test_all_entries_at_the_benchs_keys_are_cleared() -> None:
    """A record, a cooldown, and the lease of a killed process are deleted; other keys stay."""
    backend = MemoryBackend()
    for key in ("record", "lease", "cooldown", "other"):
        reply = backend.lease(key, "somebody", "identity", None, 60.0)
        assert isinstance(reply, Granted)
        if key == "cooldown":
            backend.release(reply.lease, Cooldown("identity", 60.0, False, 1, "busy"))
        elif key != "lease":
            backend.commit(reply.lease, b'{"accessToken": "x", "expiresAt": 4000000000}', 60.0)
    for key in ("record", "lease", "cooldown"):
        assert backend.inspect(key) != Slot(None)
        clear(backend, key)
        assert backend.inspect(key) == Slot(None)
    assert backend.load("other") is not None


def test_a_key_in_use_is_not_taken() -> None:
    """Two benches at once do not collide: the second takes the next key; if all are taken, it reports that."""
    backend, url = MemoryBackend(), BackendURL.parse("memory://")
    keys = [bench._own_key(backend, url, "k")]
    for _ in range(bench._NAMES - 1):
        backend.lease(f"{keys[-1]}:cold", "somebody", "identity", None, 60.0)
        keys.append(bench._own_key(backend, url, "k"))
    assert keys[:3] == ["k:bench", "k:bench1", "k:bench2"]
    assert len(set(keys)) == bench._NAMES
    backend.lease(keys[-1], "somebody", "identity", None, 60.0)
    with pytest.raises(BackendUnavailable, match="other benches run"):
        bench._own_key(backend, url, "k")


def test_a_fake_login_has_the_given_time_and_token_size() -> None:
    """The stampede's record is as long as the real one; its provider counts, and shows no secret (INV-9)."""
    provider = played(login=0.02)
    token = provider.fetch(context())
    assert len(token.value) == 1200
    assert len(provider.fetches) == 1
    assert provider.fetches[0] >= 0.02
    assert "planted-drill-secret" not in repr(provider.identity()) + repr(drill())


# --- the picture ------------------------------------------------------------------------------------------------


def spread(*values: float) -> Percentiles:
    """Return percentiles of so many calls."""
    return Percentiles(100, dict(zip(("p50", "p90", "p99", "p99.9"), values, strict=True)))


def texts(svg: str) -> str:
    """Return the words of a picture, after checking that it is well-formed."""
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return "\n".join(element.text or "" for element in root.iter(f"{SVG}text"))


def test_the_picture_holds_the_figures(fake: FakeQPay, tmp_path: Path) -> None:
    """`--picture FILE` writes well-formed XML with the printed figures; only the file is announced."""
    file = tmp_path / "bench.svg"
    ran = run.invoke(app, ["bench", "qpay", *SMALL, "--picture", str(file)])
    assert ran.exit_code == Exit.OK
    words = texts(file.read_text(encoding="utf-8"))
    lines = ran.stdout.splitlines()
    first, gets = lines[1].split()[1:3], lines[6].split()[1:3]
    assert f"{' '.join(first)}, {lines[3].split()[1]} times cached" in words
    assert f"p50 {' '.join(gets)}" in words
    assert "4 served, 1 provider call" in words
    assert f"the picture is {file}" in " ".join(ran.stderr.split())
    assert SECRET not in file.read_text(encoding="utf-8")


def test_a_picture_that_cannot_be_written_is_named() -> None:
    """A full disk behind `--picture`: the error names the file and the system's reason."""
    with pytest.raises(TokenCacheError, match="--picture /dev/full cannot be written: No space left on device"):
        save(BenchReport("a fake"), Path("/dev/full"))


def test_the_picture_takes_any_name_and_any_time() -> None:
    """Names are escaped and cut, times beyond the scale are drawn at its end, and there are colours for dark mode."""
    wild = Figures(
        'redis://a<b>&"c"' + "x" * 200,
        1e4,
        1e-10,
        spread(0.0, 1e-9, 1e3, 1e6),
        None,
        Stampede(1, 1, 1, 2, 0.5, spread(1, 1, 1, 1)),
        "a <note>",
    )
    svg = draw(BenchReport("p & q", 1, [wild, wild]))
    words = texts(svg)
    assert 'redis://a<b>&"c"' in words
    assert "2 provider calls of 500.0 ms" in words
    assert "a <note>" in words
    assert "x" * 120 not in words
    marks = [float(mark.attrib["cx"]) for mark in ET.fromstring(svg).iter(f"{SVG}circle")]
    assert marks
    assert all(LEFT <= x <= RIGHT for x in marks)
    assert "prefers-color-scheme: dark" in svg
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", ""), "nothing is loaded from elsewhere"


# --- as a process -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_no_key(fake: FakeQPay, tmp_path: Path, interrupt: Callable[..., None]) -> None:
    """INV-8: an interrupt in the middle of a stampede exits 130; its processes, leases and records are gone."""
    folder = tmp_path / "tokencache"
    fake.latency = 1.0
    interrupt(["bench", "qpay", "-b", folder.as_uri(), "-p", "2", "-t", "2"], lambda: stampeding(folder))
    assert left_behind(folder) == []
    assert fake.logins == 1


@pytest.mark.slow
def test_ctrl_c_during_the_login_leaves_no_key(fake: FakeQPay, tmp_path: Path, interrupt: Callable[..., None]) -> None:
    """INV-8: after an interrupt during the login, neither a lease nor the later token is stored."""
    folder = tmp_path / "tokencache"
    fake.latency = 1.0
    interrupt(["bench", "qpay", "-b", folder.as_uri(), "-p", "2", "-t", "2"], lambda: fake.logins == 1)
    assert left_behind(folder) == []


def stampeding(folder: Path) -> bool:
    """Return whether a process of the stampede has the lease."""
    with closing(FileBackend(folder)) as backend:
        return backend.inspect(OWN[1]).owner is not None


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_bench_quietly(fake: FakeQPay, tmp_path: Path) -> None:
    """In a pipe whose reader has gone, it ends with 141 and no traceback, and its keys are gone."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTHONUNBUFFERED"))}
    read, write = os.pipe()
    os.close(read)
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "tokencache", "bench", "qpay", *SMALL],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
            check=False,
            timeout=2 * PATIENCE,
        )
    finally:
        os.close(write)
    assert ran.returncode == Exit.BROKEN_PIPE
    assert "Traceback" not in ran.stderr
    assert left_behind(tmp_path / "tokencache") == []
