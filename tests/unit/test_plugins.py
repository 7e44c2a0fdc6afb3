"""Plugins: an entry is found and loaded at its first use, and each kind of failure has its own message."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, metadata
from typing import TYPE_CHECKING

import pytest

from tokencache import TokenCache
from tokencache.backends.memory import MemoryBackend
from tokencache.errors import BackendConflict, BackendNotInstalled, ConfigurationError
from tokencache.plugins import (
    BACKENDS,
    PROVIDERS,
    Plugin,
    _load,
    is_known,
    known,
    load_backend_factory,
    load_provider_factory,
    open_backend,
)
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a distribution into a folder on ``sys.path``; no other one is visible.

    The metadata of tokencache itself are not visible either.
    """
    before = set(sys.modules)

    def write(
        name: str,
        *,
        backends: dict[str, str] | None = None,
        providers: dict[str, str] | None = None,
        modules: dict[str, str] | None = None,
        version: str = "1.0",
        folder: str = "site",
    ) -> Path:
        site = tmp_path / folder
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        groups = {BACKENDS: backends or {}, PROVIDERS: providers or {}}
        lines = [
            line
            for group, entries in groups.items()
            for line in (f"[{group}]", *(f"{entry} = {value}" for entry, value in entries.items()))
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        for module, code in (modules or {}).items():
            (site / f"{module}.py").write_text(code)
        if str(site) not in sites:
            sites.append(str(site))
            monkeypatch.syspath_prepend(str(site))
        return site

    sites: list[str] = []
    monkeypatch.setattr(metadata, "distributions", lambda: metadata.Distribution.discover(path=sites))
    yield write
    for module in set(sys.modules) - before:
        if module.startswith("plug_"):
            del sys.modules[module]


def url(text: str) -> BackendURL:
    """Return a URL."""
    return BackendURL.parse(text)


def foreign(group: str) -> list[Plugin]:
    """Return the listed entries that are not ours."""
    return [plugin for plugin in known(group) if plugin.distribution != "tokencache"]


WORKING = {"plug_one": "def from_url(url): return ('one', str(url))\ndef from_env(): return 'provider one'\n"}


def test_a_backend_is_found_by_its_scheme(install: Install) -> None:
    """The factory of a scheme comes from its entry point, and gets the URL."""
    install("dist-one", backends={"one": "plug_one:from_url", "one.x": "plug_one:from_url"}, modules=WORKING)
    for text in ("one://h", "one+x://h"):
        assert load_backend_factory(url(text))(url(text)) == ("one", text)


def test_a_provider_is_found_by_its_name(install: Install) -> None:
    """The factory of a provider's name comes from its entry point."""
    install("dist-one", providers={"mine": "plug_one:from_env"}, modules=WORKING)
    assert load_provider_factory("mine")() == "provider one"


def test_only_the_used_entry_is_loaded(install: Install) -> None:
    """A list loads nothing; a use loads the module it needs and no other."""
    names = ["one", "two", "three"]
    install(
        "dist-one",
        backends={name: f"plug_{name}:from_url" for name in names},
        providers={name: f"plug_{name}:from_url" for name in names},
        modules={f"plug_{name}": "from_url = dict" for name in names},
    )

    def loaded() -> set[str]:
        return {name for name in names if f"plug_{name}" in sys.modules}

    known(BACKENDS)
    known(PROVIDERS)
    with pytest.raises(ConfigurationError):
        load_provider_factory("four")
    assert loaded() == set()
    load_backend_factory(url("two://"))
    assert loaded() == {"two"}


def test_importing_looks_for_no_entry_points() -> None:
    """The search starts at the first use."""
    code = "import sys; import tokencache.plugins; print('importlib.metadata' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"


def test_our_plugins_need_no_metadata(install: Install) -> None:
    """Without any metadata, our backends and providers are listed, and each loads what it names."""
    del install
    for group, first in ((BACKENDS, "memory"), (PROVIDERS, "client_credentials")):
        ours = known(group)
        assert first in {plugin.name for plugin in ours}
        assert {plugin.distribution for plugin in ours} == {"tokencache"}
        for plugin in ours:
            module, _, name = plugin.value.partition(" ")[0].partition(":")
            assert getattr(import_module(module), name) is _load(group, plugin.name).__wrapped__  # type: ignore[attr-defined]


def test_our_plugins_read_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend, a provider by name and one of a configuration are ours, so the metadata are not read."""
    monkeypatch.setattr(metadata, "entry_points", lambda **_: pytest.fail("the metadata were read"))
    acme = {"TYPE": "client_credentials", "TOKEN_URL": "https://id.example/t", "CLIENT_ID": "i", "CLIENT_SECRET": "s"}
    environ = {f"TOKENCACHE_PROVIDER_ACME_{name}": value for name, value in acme.items()}
    for url_of_ours in ("memory://", "file://", "redis+sentinel://h/main", "memcached://h"):
        assert open_backend(url_of_ours)
    assert load_provider_factory("custom_grant")
    assert TokenCache.from_env({"TOKENCACHE_BACKEND": "memory://", **environ}).source("acme").provider == "acme"


def test_no_plugin_replaces_our_own(install: Install) -> None:
    """Another distribution's entry of a name of ours is listed, and ours is loaded; an older release of ours is not."""
    install("dist-one", backends={"memory": "plug_one:from_url"}, modules=WORKING)
    install("tokencache", backends={"memory": "plug_old:from_url", "gone": "plug_old:from_url"}, version="0.0.1")
    assert isinstance(open_backend("memory://"), MemoryBackend)
    assert [plugin.distribution for plugin in known(BACKENDS) if plugin.name == "memory"] == ["dist-one", "tokencache"]
    assert not is_known(BACKENDS, "gone")


def test_known_lists_the_declared_entries(install: Install) -> None:
    """The list has every entry of a group, by name, with its distribution and version."""
    install("dist-b", backends={"b": "plug_b:x", "a": "plug_a:x [extra]"}, version="2.1")
    install("dist-a", backends={"b": "other:x"}, providers={"p": "plug_p:x"})
    assert foreign(BACKENDS) == [
        Plugin("a", BACKENDS, "dist-b", "2.1", "plug_a:x [extra]"),
        Plugin("b", BACKENDS, "dist-a", "1.0", "other:x"),
        Plugin("b", BACKENDS, "dist-b", "2.1", "plug_b:x"),
    ]
    assert foreign(PROVIDERS) == [Plugin("p", PROVIDERS, "dist-a", "1.0", "plug_p:x")]


def test_a_scheme_of_two_distributions_is_refused(install: Install) -> None:
    """The error names both distributions, and neither is loaded."""
    install("dist-one", backends={"one": "plug_one:from_url", "free": "plug_one:from_url"}, modules=WORKING)
    install("Dist.Two", backends={"one": "plug_one:from_url"}, version="3")
    with pytest.raises(BackendConflict) as caught:
        load_backend_factory(url("one://"))
    message = str(caught.value)
    assert message.startswith("the backend 'one' is claimed by ")
    assert "dist-one 1.0" in message
    assert "Dist.Two 3" in message
    assert message.endswith("; uninstall one of them")
    assert "plug_one" not in sys.modules
    assert load_backend_factory(url("free://"))


def test_a_provider_of_two_distributions_is_refused(install: Install) -> None:
    """For providers the conflict is a ConfigurationError."""
    install("dist-one", providers={"p": "plug_one:from_env"}, modules=WORKING)
    install("dist-two", providers={"p": "plug_one:from_env"})
    with pytest.raises(ConfigurationError, match=r"the provider 'p' is claimed by dist-\w+ 1\.0 and dist-\w+ 1\.0"):
        load_provider_factory("p")


@pytest.mark.parametrize("same", ["dist-one", "Dist_One", "dist.one"])
@pytest.mark.parametrize("folder", ["site", "elsewhere"])
def test_one_distribution_listed_twice_is_not_a_conflict(install: Install, same: str, folder: str) -> None:
    """Old metadata beside new, in one folder or two and with any spelling of the name, is not a conflict."""
    install("dist-one", backends={"one": "plug_one:from_url"}, modules=WORKING)
    install(same, backends={"one": "plug_one:from_url"}, version="0.9", folder=folder)
    assert load_backend_factory(url("one://h"))(url("one://h")) == ("one", "one://h")
    assert len(foreign(BACKENDS)) == 1


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("plug_needy:from_url [redis]", "pip install 'dist-one[redis]'"),
        ("plug_needy:from_url [redis,crypto]", "pip install 'dist-one[redis,crypto]'"),
        ("plug_needy:from_url", "pip install 'dist-one'"),
    ],
)
def test_a_missing_extra_is_named(install: Install, value: str, line: str) -> None:
    """The error names the missing client library and the exact install command."""
    code = "import no_such_client"
    install("dist-one", backends={"needy": value}, providers={"needy": value}, modules={"plug_needy": code})
    with pytest.raises(BackendNotInstalled) as caught:
        load_backend_factory(url("needy://"))
    message = str(caught.value)
    assert message == f"the backend 'needy' needs the module 'no_such_client', which could not be imported: {line}"
    assert isinstance(caught.value.__cause__, ImportError)
    with pytest.raises(ConfigurationError) as refused:
        load_provider_factory("needy")
    assert str(refused.value) == message.replace("backend", "provider")


def test_a_client_library_missing_at_the_call_is_named(install: Install) -> None:
    """If a factory imports its library only when it is called, the error is the same."""
    code = "def from_url(url):\n    import no_such_client\ndef from_env():\n    raise ImportError\n"
    entries = {"late": "plug_late:from_url [late]"}
    install("dist-one", backends=entries, providers={"late": "plug_late:from_env"}, modules={"plug_late": code})
    factory = load_backend_factory(url("late://"))
    with pytest.raises(BackendNotInstalled, match=r"'no_such_client'.*pip install 'dist-one\[late\]'$"):
        factory(url("late://"))
    with pytest.raises(ConfigurationError, match="the provider 'late' needs a module, which could not be imported"):
        load_provider_factory("late")()


@pytest.mark.parametrize(
    ("value", "code", "what"),
    [
        ("plug_broken:absent", "", "raised AttributeError"),
        ("plug_broken:made", "made = 5", "is not callable"),
        ("plug_broken:made", "1 / 0", "raised ZeroDivisionError"),
        ("plug_broken:made", "made =", "raised SyntaxError"),
        ("not a value!", "", "raised"),
    ],
)
def test_a_broken_entry_is_reported(install: Install, value: str, code: str, what: str) -> None:
    """An entry that cannot be loaded is reported with distribution and value, whatever it raised."""
    install("dist-one", backends={"broken": value}, providers={"broken": value}, modules={"plug_broken": code})
    for load in (lambda: load_backend_factory(url("broken://")), lambda: load_provider_factory("broken")):
        with pytest.raises(ConfigurationError) as caught:
            load()
        assert f"'broken' of dist-one 1.0 is broken: {value!r} {what}" in str(caught.value)


def test_errors_of_a_factory_pass_unchanged(install: Install) -> None:
    """An error of the factory itself, such as a wrong option, is not taken for a missing library."""
    code = "def from_url(url): raise LookupError('mine')"
    install("dist-one", backends={"one": "plug_raises:from_url"}, modules={"plug_raises": code})
    with pytest.raises(LookupError, match="mine"):
        load_backend_factory(url("one://"))(url("one://"))


def test_an_unknown_name_is_refused_with_the_known_ones(install: Install) -> None:
    """The error lists the known names, as users write them, and the closest."""
    install("dist-one", backends={"shop.v2": "x:y"}, providers={"shop.v2": "x:y"})
    with pytest.raises(ConfigurationError) as caught:
        load_backend_factory(url("redis+sentinal://:hunter2@h"))
    assert str(caught.value) == (
        "there is no backend 'redis+sentinal'; known: file, memcached, memory, redis, redis+cluster, redis+sentinel,"
        " rediss, shop+v2, unix; did you mean 'redis+sentinel'?"
    )
    with pytest.raises(ConfigurationError, match=r"^there is no provider 'zzz'; known: client_.*, shop\.v2, token_ex"):
        load_provider_factory("zzz")


def test_a_name_twice_in_one_distribution_is_not_a_conflict(install: Install) -> None:
    """If a distribution declares one name twice, its first entry counts."""
    site = install("dist-one", modules=WORKING)
    lines = f"[{BACKENDS}]\none = plug_one:from_url\none = plug_absent:from_url\n"
    (site / "dist_one-1.0.dist-info" / "entry_points.txt").write_text(lines)
    assert load_backend_factory(url("one://"))
    assert [plugin.value for plugin in foreign(BACKENDS)] == ["plug_one:from_url"]


def test_metadata_without_a_name_is_ignored(install: Install) -> None:
    """A damaged distribution does not hide the plugins of others."""
    site = install("dist-one", backends={"one": "plug_one:from_url"}, modules=WORKING)
    info = site / "damaged-1.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(f"[{BACKENDS}]\nother = plug_one:from_url\n")
    assert load_backend_factory(url("one://"))
    assert [plugin.distribution for plugin in foreign(BACKENDS)] == ["dist-one", "an unnamed distribution"]
