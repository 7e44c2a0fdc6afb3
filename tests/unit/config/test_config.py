"""Configuration: the file, the variables, the places of secrets, and the message for each mistake."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NotRequired, Required, TypedDict, Unpack

import pytest

from tokencache import BackendClosed, ConfigurationError, FetchContext, RefreshPolicy, Secret, Token, TokenCache, _files
from tokencache.backends.file import FileBackend
from tokencache.backends.memory import MemoryBackend
from tokencache.config import Configuration, Setting
from tokencache.config._factory import schema_of
from tokencache.config._types import kind_of
from tokencache.plugins import PROVIDERS
from tokencache.ports import SecretText
from tokencache.testing.fakes import Recorder

PLANTED = "planted-secret-9c41"
KEY = bytes(range(32)).hex()


class Base(TypedDict):
    """Options that are required unless they say otherwise."""

    url: str
    scopes: NotRequired[Sequence[str]]


class Options(Base, total=False):
    """Options that are not required unless they say so."""

    name: str
    client_id: Required[str]
    client_secret: SecretText
    retries: int
    wait: float
    strict: bool
    method: Literal["basic", "post"]
    scope: str | Sequence[str]
    headers: Mapping[str, str]
    client: MemoryBackend


class Acme:
    """A provider that keeps its settings."""

    def __init__(self, *, mark: str | None = None, **options: Unpack[Options]) -> None:
        self.name = options.get("name", "acme")
        self.options: dict[str, Any] = dict(options) | ({} if mark is None else {"mark": mark})
        if options["url"] == "wrong":
            message = f"[{self.name}] url must be an address"
            raise ConfigurationError(message)
        if options["url"] == "broken":
            raise RuntimeError(PLANTED)

    def identity(self) -> Mapping[str, object]:
        """Return url, client and credential."""
        named = {name: self.options[name] for name in ("url", "client_id")}
        return named | {"client_secret": Secret(self.options.get("client_secret", ""))}

    def fetch(self, context: FetchContext) -> Token:
        """Return a token that names the client."""
        now = time.time()
        return Token(f"token-of-{self.options['client_id']}", expires_at=now + 3600, issued_at=now)


def plain(token_url: str, secret: SecretText = "", *, factor: int = 1) -> Acme:
    """Make a provider; this function takes no ``name``."""
    return Acme(url=token_url, client_id="plain", client_secret=secret, retries=factor)


def handmade(client: MemoryBackend) -> Acme:
    """Make a provider from a type that a file cannot hold."""
    raise NotImplementedError


@pytest.fixture(autouse=True)
def providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install only this module's plugins; start in an empty folder, without variables."""
    module = ModuleType("plug_config")
    vars(module).update(Acme=Acme, plain=plain, handmade=handmade)
    monkeypatch.setitem(sys.modules, "plug_config", module)
    info = tmp_path / "site" / "dist_config-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dist-config\nVersion: 1.0\n")
    names = {"acme": "Acme", "plain": "plain", "handmade": "handmade"}
    lines = [f"[{PROVIDERS}]", *(f"{name} = plug_config:{value}" for name, value in names.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.setattr(
        metadata, "distributions", lambda: metadata.Distribution.discover(path=[str(tmp_path / "site")])
    )
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    for name in ("TOKENCACHE_CONFIG", "TOKENCACHE_BACKEND", "REDIS_DATABASE_URI"):
        monkeypatch.delenv(name, raising=False)


ACME: dict[str, object] = {"type": "acme", "url": "https://id.acme.example", "client_id": "abc"}


def made(*, environ: Mapping[str, str] | None = None, **settings: object) -> Acme:
    """Return the provider that a table with these settings makes."""
    document = {"providers": {"acme": ACME | settings}}
    found = Configuration.load(document, environ=environ or {}).provider("acme")
    assert found is not None
    assert isinstance(found.provider, Acme)
    return found.provider


def complaint(document: object = None, *, name: str = "acme", environ: Mapping[str, str] | None = None) -> str:
    """Return the error of a configuration, when it is loaded or when a source of it is made."""
    with pytest.raises(ConfigurationError) as caught:
        TokenCache.from_config(document, environ=environ or {}).source(name)  # type: ignore[arg-type]
    assert PLANTED not in str(caught.value)
    return str(caught.value)


# --- the file ---------------------------------------------------------------------------------------------------


def test_a_file_sets_up_a_cache(tmp_path: Path) -> None:
    """Namespace, backends, policies, keys and providers of a file reach their sources."""
    path = tmp_path / "tokencache.toml"
    path.write_text(
        f"""
        namespace = "orders:"
        backend = "main"
        [backends]
        main = "memory://"
        local = {{ url = "file://{tmp_path}/tokens" }}
        [policy]
        early = 50
        window = 100
        [encryption]
        keys = ["{KEY}"]
        [providers.acme]
        type = "acme"
        url = "https://id.acme.example"
        client_id = "abc"
        client_secret = {{ env = "ACME_SECRET" }}
        [providers.shop]
        type = "acme"
        url = "https://id.shop.example"
        client_id = "shop"
        client_secret = {{ file = "shop.key" }}
        backend = "local"
        key = "shop-key"
        policy = {{ early = 10 }}
        keep_warm = true
        """
    )
    (tmp_path / "shop.key").write_text("of-a-file\r\n")
    with TokenCache.from_config(path, environ={"ACME_SECRET": "of-a-variable"}) as cache:
        acme, shop = cache.source("acme"), cache.source("shop")
        assert acme.key.startswith("orders:acme:")
        assert shop.key == "shop-key"
        assert (acme._policy.early, acme._policy.window) == (50, 100)
        assert (shop._policy.early, shop._policy.window) == (10, 100)
        assert acme._world.provider.options["client_secret"] == "of-a-variable"  # type: ignore[attr-defined]
        assert shop._world.provider.options["client_secret"] == "of-a-file"  # type: ignore[attr-defined]
        assert (acme._world.backend.name, shop._world.backend.name) == ("memory", "file")
        assert shop.token().value == "token-of-shop"
        assert b"sealed" in FileBackend(tmp_path / "tokens").load("shop-key").data  # type: ignore[union-attr]
        assert cache.source("acme") is acme
    plan = Configuration.load(path, environ={"ACME_SECRET": "x"})
    assert plan.provider("shop").keep_warm  # type: ignore[union-attr]


def test_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`TOKENCACHE_CONFIG` goes before `tokencache.toml` in the working folder; without both, the error names both."""
    text = complaint()
    assert "TOKENCACHE_CONFIG" in text
    assert "tokencache.toml" in text
    Path("tokencache.toml").write_text('namespace = "here:"')
    assert Configuration.load(environ={}).namespace == "here:"
    (tmp_path / "other.toml").write_text('namespace = "other:"')
    assert Configuration.load(environ={"TOKENCACHE_CONFIG": str(tmp_path / "other.toml")}).namespace == "other:"
    monkeypatch.setenv("TOKENCACHE_CONFIG", str(tmp_path / "other.toml"))
    assert TokenCache.from_config()._resolver.namespace == "other:"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[providers]\nacme = = 1\n", "line 2, column 8: this is not TOML"),
        (b"[providers\n", "line 1, column"),
        (b'namespace = "a', "this is not TOML"),
        (b"namespace = '\xff'", "it is not UTF-8 text (byte 13)"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, "it is nested too deeply; correct the file"),
        (b"a = " + b"{a = " * 5000 + b"1" + b"}" * 5000, "it is nested too deeply; correct the file"),
        (b"a = " + b"9" * 5000, "a number in it is too long; correct the file"),
        (None, "there is no such file; correct the path"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported(content: bytes | None, said: str, tmp_path: Path) -> None:
    """Invalid TOML is reported with file, line and column; a missing file with the origin of its path."""
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    text = complaint(path)
    assert text.startswith(f"{path}: ")
    assert said in text


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"namspace": "a"}, "configuration: namspace: there is no setting of this name; did you mean 'namespace'?"),
        ({"providers": 5}, "providers: this must be tables: [providers.NAME]"),
        ({"providers": {"acme": PLANTED}}, "providers.acme: this must be a table"),
        ({"policy": {"earli": 5}}, "policy.earli: there is no field of the policy of this name; did you mean 'early'?"),
        ({"policy": {"early": PLANTED}}, "policy.early: expected a number; this is a text"),
        ({"policy": {"early": True}}, "policy.early: expected a number; this is true or false"),
        ({"policy": {"early": float("nan")}}, "policy.early: expected a number; this is not finite"),
        ({"policy": {"early": -1}}, "policy.early: RefreshPolicy(early=-1.0)"),
        ({"encryption": {"key": PLANTED}}, "did you mean 'keys'?"),
        ({"encryption": {"keys": PLANTED}}, "encryption.keys: this must be a list"),
        ({"encryption": {"keys": []}}, "encryption.keys: the list of keys is empty"),
        ({"encryption": {"keys": [KEY, PLANTED]}}, "encryption.keys[1]: encryption: a key has 32 bytes"),
        ({"encryption": {"keys": [KEY], "from_provider": True}}, "keys and from_provider exclude each other"),
        ({"namespace": 5}, "namespace: expected a text; this is a number"),
        ({"backend": "mian", "backends": {"main": "memory://"}}, "did you mean 'main'?"),
        ({"backend": f"redis://h/{PLANTED}@x/0"}, "backend: the backend URL is not usable"),
        ({"backend": "main", "backends": {"main": {"password": PLANTED}}}, "backends.main: url is missing"),
        (
            {"backend": "main", "backends": {"main": {"url": "memory://", "pasword": PLANTED}}},
            "did you mean 'password'",
        ),
        ({"backend": "main", "backends": {"main": "redis://h?colour=blue"}}, "backends.main: redis:// has no option"),
        ({"backend": "main", "backends": {"main": {"env": "URL_OF_MAIN"}}}, "backends.main: the variable URL_OF_MAIN"),
    ],
)
def test_a_mistake_outside_of_providers_is_reported(document: dict[str, object], said: str) -> None:
    """Each mistake names its key and the remedy, for a typing error the closest name, and no value (INV-9)."""
    assert said in complaint({"providers": {"acme": ACME}} | document)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clientid": PLANTED}, "providers.acme.clientid: there is no setting of this name; did you mean 'client_id'?"),
        ({"client": PLANTED}, "providers.acme.client: there is no setting of this name"),
        ({"name": PLANTED}, "providers.acme.name: there is no setting of this name"),
        ({"client_id": 5}, "providers.acme.client_id: expected a text; this is a number"),
        ({"client_id": {"of": PLANTED}}, "providers.acme.client_id: expected a text; this is a table"),
        ({"retries": 1.5}, "providers.acme.retries: expected a whole number; this is a number"),
        ({"retries": True}, "providers.acme.retries: expected a whole number; this is true or false"),
        ({"wait": PLANTED}, "providers.acme.wait: expected a number; this is a text"),
        ({"strict": 1}, "providers.acme.strict: expected true or false"),
        (
            {"method": "bsic"},
            "providers.acme.method: this is not an allowed value; did you mean 'basic'?",
        ),
        ({"method": PLANTED}, "use one of 'basic', 'post'"),
        ({"scopes": PLANTED}, "providers.acme.scopes: expected a list of texts; this is a text"),
        ({"scopes": ["a", 5]}, "providers.acme.scopes[1]: expected a text"),
        ({"headers": {"X-A": 5}}, "providers.acme.headers.X-A: expected a text"),
        ({"type": "acmee"}, "providers.acme.type: there is no provider 'acmee'"),
        ({"type": 5}, "providers.acme.type: this must be a text"),
        ({"preset": "auth0"}, "providers.acme: it has both type and preset"),
        ({"type": "handmade"}, "cannot be made from a configuration: it needs 'client'"),
        ({"backend": 5}, "providers.acme.backend: expected a text"),
        ({"backend": "local"}, "the backend URL is not usable"),
        ({"keep_warm": "x"}, "providers.acme.keep_warm: expected true or false"),
        ({"policy": 5}, "providers.acme.policy: this must be a table"),
        ({"policy": {"earlu": 5}}, "providers.acme.policy.earlu"),
        ({"policy": {"jitter": 2}}, "providers.acme.policy.jitter: RefreshPolicy(jitter=2.0)"),
        ({"url": "wrong"}, "providers.acme: [acme] url must be an address"),
        ({"url": "broken"}, "providers.acme: its factory raised RuntimeError"),
        ({"client_secret": {"env": "NOT_THERE"}}, "providers.acme.client_secret: the variable NOT_THERE is not set"),
    ],
)
def test_a_mistake_in_a_provider_is_reported(settings: dict[str, object], said: str) -> None:
    """An unknown, mistyped or refused setting is named by its key; the factory's own error is not shown (INV-9)."""
    assert said in complaint({"providers": {"acme": ACME | settings}})


def test_a_missing_setting_is_reported() -> None:
    """A required setting is named; with several mistakes, the error shows the first and how to see the others."""
    text = complaint({"providers": {"acme": {"type": "acme", "url": "u"}}})
    assert "providers.acme.client_id: this is missing; add client_id = " in text
    assert "(and 1 more: `tokencache config check`)" in complaint({"providers": {"acme": {"type": "acme"}}})
    assert "neither type nor preset" in complaint({"providers": {"acme": {}}})


def test_an_unused_provider_causes_no_error() -> None:
    """References are resolved when the source is made, so an unset variable fails only its own provider."""
    document = {
        "providers": {"acme": ACME, "other": ACME | {"client_secret": {"env": "NOT_THERE"}}},
        "backends": {"far": {"env": "NOT_THERE"}},
    }
    with TokenCache.from_config(document, environ={}) as cache:
        assert cache.source("acme").token().value == "token-of-abc"
        with pytest.raises(ConfigurationError, match=r"providers\.other\.client_secret"):
            cache.source("other")


def test_an_unneeded_backend_causes_no_error() -> None:
    """If the main backend's reference cannot be resolved, only the sources on that backend fail."""
    document = {
        "backend": {"env": "NOT_THERE"},
        "providers": {"acme": ACME | {"backend": "memory://"}, "other": ACME | {"client_id": "other"}},
    }
    with TokenCache.from_config(document, environ={}) as cache:
        assert cache.source("acme").token().value == "token-of-abc"
        with pytest.raises(ConfigurationError, match="backend: the variable NOT_THERE is not set"):
            cache.source("other")


def test_an_unknown_provider_is_reported_with_the_known_ones() -> None:
    """For a name that is neither configured nor installed, the error suggests the closest of both kinds."""
    document = {"providers": {"orders": ACME}}
    assert "there is no provider 'ordres', neither here nor installed; did you mean 'orders'?" in complaint(
        document, name="ordres"
    )
    assert "did you mean 'plain'?" in complaint(document, name="plian")


def test_a_configured_name_goes_before_an_installed_one() -> None:
    """`source()` prefers a table to an entry point of the same name; other names are still entry points."""
    document = {"providers": {"plain": ACME}}
    with TokenCache.from_config(document, environ={}) as cache:
        assert cache.source("plain")._world.provider.options["client_id"] == "abc"  # type: ignore[attr-defined]
        with pytest.raises(KeyError):  # the entry point, called without arguments
            cache.source("acme")


# --- types ------------------------------------------------------------------------------------------------------


def test_settings_arrive_as_their_types() -> None:
    """Each type that a configuration can hold arrives unchanged, and so does the table's name."""
    settings: dict[str, object] = {
        "retries": 3,
        "wait": 2,
        "strict": False,
        "method": "post",
        "scopes": ["a", {"env": "S"}],
        "headers": {"X-A": "1", "X-B": {"env": "S"}},
        "mark": "m",
    }
    options = made(environ={"S": "secret"}, scope="a b", **settings).options
    assert options["wait"] == 2.0
    assert isinstance(options["wait"], float)
    assert options["scopes"] == ["a", "secret"]
    assert options["headers"] == {"X-A": "1", "X-B": "secret"}
    assert (options["retries"], options["strict"], options["method"], options["mark"]) == (3, False, "post", "m")
    assert (options["name"], options["scope"]) == ("acme", "a b")
    assert made(scope=["a", "b"]).options["scope"] == ["a", "b"]
    document = {"providers": {"p": {"type": "plain", "token_url": "u", "factor": 7}}}
    assert Configuration.load(document, environ={}).provider("p").provider.options["retries"] == 7  # type: ignore[union-attr,attr-defined]


def test_a_reference_can_replace_any_type() -> None:
    """A number, a boolean or a choice may also come from a variable."""
    environ = {"N": "3", "W": "2.5", "B": "yes", "M": "post"}
    refer = {"retries": "N", "wait": "W", "strict": "B", "method": "M"}
    options = made(environ=environ, **{name: {"env": variable} for name, variable in refer.items()}).options
    assert {name: options[name] for name in refer} == {"retries": 3, "wait": 2.5, "strict": True, "method": "post"}
    document = {"providers": {"acme": ACME | {"retries": {"env": "N"}}}}
    text = complaint(document, environ={"N": PLANTED})
    assert "providers.acme.retries: expected a whole number; this text is not one" in text


def test_a_table_of_texts_is_not_a_reference() -> None:
    """If a table of texts is expected, a table with the field `env` is that table, not a reference."""
    assert made(headers={"env": "prod"}).options["headers"] == {"env": "prod"}


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (str, "a text"),
        (SecretText | None, "a text"),
        (int | None, "a whole number"),
        (float, "a number"),
        (bool, "true or false"),
        (list[str], "a list of texts"),
        (tuple[str, ...], "a list of texts"),
        (Sequence[str] | None, "a list of texts"),
        (str | Sequence[str], "a text or a list of texts"),
        (Mapping[str, str], "a table of texts"),
        (dict[str, SecretText], None),
        (Literal["a", 1] | None, "one of 'a', 1"),
        (Annotated[int, "whatever"], "a whole number"),
        (tuple[str, str], None),
        (Sequence[int], None),
        (Mapping[str, int], None),
        (RefreshPolicy | None, None),
        (object, None),
        (None, None),
    ],
)
def test_a_type_is_supported_or_left_out(annotation: object, words: str | None) -> None:
    """A type is either one that a configuration can hold, or not a setting."""
    kind = kind_of(annotation)
    assert (None if kind is None else str(kind)) == words


def test_the_signature_is_the_schema() -> None:
    """Required, NotRequired, totality and inheritance of a TypedDict count; a secret is recognised."""
    settings = schema_of(Acme).settings
    assert {name for name, setting in settings.items() if setting.required} == {"url", "client_id"}
    assert {name for name, setting in settings.items() if setting.secret} == {"client_secret"}
    assert "client" not in settings
    assert "name" not in settings
    assert schema_of(Acme).takes_name
    assert not schema_of(plain).takes_name
    assert schema_of(handmade).unfit == ("client",)


def test_other_callables_have_a_schema() -> None:
    """A dataclass, a partial, a class method, a callable object and an unreadable type hint are understood."""
    from functools import partial

    @dataclasses.dataclass
    class Made:
        url: str
        tries: int = 3

        @classmethod
        def of(cls, *, host: str) -> object:
            """Make one."""
            return cls(host)

        def __call__(self, *, word: str) -> object:
            """Make another."""
            return self

    def unreadable(known: str, odd: NotImportedAnywhere = None) -> object:  # type: ignore[name-defined]  # noqa: F821
        """Have a type hint that cannot be resolved."""
        return odd

    def others(**texts: str) -> object:
        """Take any text."""
        return texts

    def names(factory: Callable[..., object]) -> list[str]:
        return list(schema_of(factory).settings)

    assert names(Made) == ["url", "tries"]
    assert names(partial(plain, "u")) == ["secret", "factor"]
    assert names(Made.of) == ["host"]
    assert names(Made("u")) == ["word"]
    assert names(unreadable) == ["known"]
    assert schema_of(others).others is str
    with pytest.raises(ConfigurationError, match="the signature of its factory cannot be read"):
        schema_of(type)


def test_a_preset_is_made_of_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """`preset = …` takes the preset's declared settings, and passes them with the table's name to it."""
    module = ModuleType("tokencache.providers.presets")
    declared = {"domain": Setting("domain", str, required=True), "secret": Setting("secret", str, secret=True)}
    vars(module).update(
        preset_settings=lambda name: declared,
        preset=lambda kind, /, **settings: Acme(
            url=f"https://{settings['domain']}", client_id=kind, name=settings["name"]
        ),
    )
    monkeypatch.setitem(sys.modules, "tokencache.providers.presets", module)
    document = {"providers": {"shop": {"preset": "auth0", "domain": "shop.example"}}}
    options = Configuration.load(document, environ={}).provider("shop").provider.options  # type: ignore[union-attr,attr-defined]
    assert (options["url"], options["client_id"], options["name"]) == ("https://shop.example", "auth0", "shop")
    assert "providers.shop.domain: this is missing" in complaint(
        {"providers": {"shop": {"preset": "auth0"}}}, name="shop"
    )


# --- references -------------------------------------------------------------------------------------------------


def test_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    """A final line break is dropped; a field of a JSON file is taken by name; paths start at the file's folder."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "plain").write_text("s3cret \n\n")
    (tmp_path / "conf" / "key.json").write_text(json.dumps({"private_key": "-----BEGIN\n", "n": 5}))
    path = tmp_path / "conf" / "tokencache.toml"
    table = '[providers.acme]\ntype = "acme"\nurl = "u"\nclient_id = "i"\nclient_secret = '

    def secret(reference: str) -> object:
        path.write_text(table + reference)
        return Configuration.load(path, environ={}).provider("acme").provider.options["client_secret"]  # type: ignore[union-attr,attr-defined]

    assert secret('{ file = "plain" }') == "s3cret \n"
    assert secret(f'{{ file = "{tmp_path}/conf/plain" }}') == "s3cret \n"
    assert secret('{ file = "key.json", json = "private_key" }') == "-----BEGIN\n"
    assert secret('{ file = "nowhere", default = "d" }') == "d"
    assert secret('{ file = "key.json", json = "other", default = "d" }') == "d"


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ({"file": "nowhere"}, "there is no such file; correct the path, or mount the secret there"),
        ({"file": "~no-such-user/x"}, "there is no such file; correct the path, or mount the secret there"),
        ({"file": "."}, "Is a directory"),
        ({"file": "fifo"}, "the other end of this pipe did not finish within 0.05 s"),
        ({"file": "empty"}, "is empty; write the secret into it"),
        ({"file": "binary"}, "it is not UTF-8 text"),
        ({"file": "large"}, "it is larger than 1048576 bytes"),
        ({"file": "text", "json": "field"}, "does not hold a JSON object"),
        ({"file": "object", "json": "field"}, "has no text field 'field'"),
        ({"file": "object", "json": "number"}, "has no text field 'number'"),
        (
            {"file": "text", "jsn": "field"},
            "client_secret.jsn: there is no option of { file = … } of this name; did you",
        ),
        ({"env": 5}, "client_secret.env: this must be a text"),
        ({"env": ""}, "client_secret.env: this must be a text"),
        ({"env": "EMPTY"}, "the variable EMPTY is not set; set EMPTY where this runs, or add a default"),
        ({"env": "A", "file": "b"}, "client_secret: expected a text; this is a table"),
    ],
)
def test_a_reference_that_cannot_be_resolved_is_reported(
    reference: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of missing secret has its own message, which does not show what was found instead (INV-9)."""
    monkeypatch.setattr(_files, "_PATIENCE", 0.05)
    os.mkfifo("fifo")
    Path("empty").write_text("\n")
    Path("binary").write_bytes(PLANTED.encode() + b"\xff")
    Path("large").write_bytes(b"x" * ((1 << 20) + 1))
    Path("text").write_text(PLANTED)
    Path("object").write_text(json.dumps({"number": 5, "other": PLANTED}))
    document = {"providers": {"acme": ACME | {"client_secret": reference}}}
    assert said in complaint(document, environ={"EMPTY": ""})


def test_a_default_replaces_a_missing_value() -> None:
    """An unset or empty variable gives the default, a set one its value; an empty default counts too."""
    reference = {"env": "SECRET", "default": "d"}
    assert made(client_secret=reference).options["client_secret"] == "d"
    assert made(client_secret=reference, environ={"SECRET": ""}).options["client_secret"] == "d"
    assert made(client_secret=reference, environ={"SECRET": "s"}).options["client_secret"] == "s"
    assert made(client_secret={"env": "SECRET", "default": ""}).options["client_secret"] == ""


def test_a_secret_can_come_from_the_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keyring gets service and user; a missing entry, a locked keyring, a missing library have their own texts."""
    keyring = ModuleType("keyring")
    known = {("acme", "me"): "of-the-keyring"}
    vars(keyring)["get_password"] = lambda service, user: known.get((service, user))
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    reference = {"keyring": "acme", "user": "me"}
    document = {"providers": {"acme": ACME | {"client_secret": reference}}}
    assert made(client_secret=reference).options["client_secret"] == "of-the-keyring"
    known.clear()
    assert "the keyring has no password of 'me' for 'acme'; keyring set acme me" in complaint(document)
    assert made(client_secret=reference | {"default": "d"}).options["client_secret"] == "d"

    def locked(service: str, user: str) -> str:
        raise RuntimeError(PLANTED)

    vars(keyring)["get_password"] = locked
    assert "the keyring could not be asked: RuntimeError" in complaint(document)
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert complaint(document).endswith("pip install 'tokencache[keyring]'")


def test_a_rotated_secret_makes_another_source(tmp_path: Path) -> None:
    """A secret is read again at each `source()`, so a replaced mounted file is used at once (INV-10)."""
    file = tmp_path / "secret"
    file.write_text("old")
    with TokenCache.from_config({"providers": {"acme": ACME | {"client_secret": {"file": str(file)}}}}) as cache:
        first = cache.source("acme")
        assert cache.source("acme") is first
        file.write_text("new")
        assert cache.source("acme").key != first.key


# --- variables --------------------------------------------------------------------------------------------------


def test_variables_set_up_a_cache(tmp_path: Path) -> None:
    """Variables alone set backend, namespace, policy, keys and a provider, with its types and a secret in a file."""
    (tmp_path / "secret").write_text("of-a-file\n")
    environ = {
        "TOKENCACHE_BACKEND": f"file://{tmp_path}/tokens",
        "TOKENCACHE_NAMESPACE": "orders:",
        "TOKENCACHE_POLICY_EARLY": "30",
        "TOKENCACHE_ENCRYPTION_KEYS": f"{KEY}, {'00' * 32}",
        "TOKENCACHE_PROVIDER_ACME_TYPE": "acme",
        "TOKENCACHE_PROVIDER_ACME_URL": "u",
        "TOKENCACHE_PROVIDER_ACME_CLIENT_ID": "abc",
        "TOKENCACHE_PROVIDER_ACME_CLIENT_SECRET_FILE": str(tmp_path / "secret"),
        "TOKENCACHE_PROVIDER_ACME_SCOPES": "a, b",
        "TOKENCACHE_PROVIDER_ACME_HEADERS": "X-A=1,X-B=2",
        "TOKENCACHE_PROVIDER_ACME_STRICT": "yes",
        "TOKENCACHE_PROVIDER_ACME_POLICY_WINDOW": "77",
        "TOKENCACHE_PROVIDER_ACME_KEEP_WARM": "on",
    }
    with TokenCache.from_env(environ) as cache:
        source = cache.source("acme")
        options = source._world.provider.options  # type: ignore[attr-defined]
        assert options["client_secret"] == "of-a-file"
        assert (options["scopes"], options["headers"], options["strict"]) == (
            ["a", "b"],
            {"X-A": "1", "X-B": "2"},
            True,
        )
        assert source.key.startswith("orders:acme:")
        assert (source._policy.early, source._policy.window) == (30, 77)
        assert source._world.backend.name == "file"
        source.token()
        assert b"sealed" in source._world.backend.load(source.key).data  # type: ignore[union-attr]
    assert Configuration.from_env(environ).provider("acme").keep_warm  # type: ignore[union-attr]


def test_variables_override_the_file(tmp_path: Path) -> None:
    """A variable replaces one setting and leaves the rest; `TOKENCACHE_BACKEND` may name a backend of the file."""
    path = tmp_path / "t.toml"
    path.write_text(
        f'namespace = "file:"\nbackend = "one"\n[backends]\none = "memory://"\ntwo = "file://{tmp_path}/two"\n'
        "[policy]\nearly = 1\nwindow = 2\n[encryption]\nfrom_provider = true\n"
        '[providers.my-shop]\ntype = "acme"\nurl = "u"\nclient_id = "file"\nclient_secret = "s"\n'
    )
    environ = {
        "TOKENCACHE_CONFIG": str(path),
        "TOKENCACHE_BACKEND": "two",
        "TOKENCACHE_POLICY_WINDOW": "9",
        "TOKENCACHE_ENCRYPTION_KEYS": KEY,
        "TOKENCACHE_PROVIDER_MY_SHOP_CLIENT_ID": "variable",
        "REDIS_DATABASE_URI": "redis://nowhere.invalid",
    }
    plan = Configuration.from_env(environ)
    assert (plan.namespace, plan.backend, str(plan.backend_url())) == ("file:", "two", f"file://{tmp_path}/two")
    assert plan.policy == RefreshPolicy(early=1, window=9)
    sealer = plan.sealer()
    assert sealer is not None
    assert sealer._sealing is not None  # sealed by a key, not by the provider's credential
    options = plan.provider("my-shop").provider.options  # type: ignore[union-attr,attr-defined]
    assert (options["url"], options["client_id"], options["name"]) == ("u", "variable", "my-shop")
    del environ["TOKENCACHE_BACKEND"]
    assert Configuration.from_env(environ).backend == "one"


@pytest.mark.parametrize(
    ("environ", "backend"),
    [
        ({}, "memory://"),
        ({"REDIS_DATABASE_URI": "redis://a"}, "redis://a"),
        ({"REDIS_DATABASE_URI": "redis://a", "TOKENCACHE_BACKEND": "redis://b"}, "redis://b"),
        ({"REDIS_DATABASE_URI": "redis://a", "TOKENCACHE_BACKEND": ""}, "redis://a"),
    ],
)
def test_the_variable_of_the_backend_is_found_in_order(environ: dict[str, str], backend: str) -> None:
    """The order is `TOKENCACHE_BACKEND`, `REDIS_DATABASE_URI`, memory; an empty variable counts as unset."""
    assert Configuration.from_env(environ).backend == backend
    assert Configuration.load({}, environ=environ).backend == backend


def test_a_variables_name_is_split_at_the_provider() -> None:
    """Names and settings with underscores, settings that end in `_TYPE`, and a file's longer names are told apart."""
    environ = {
        "TOKENCACHE_PROVIDER_ACME_TYPE": "acme",
        "TOKENCACHE_PROVIDER_ACME_GRANT_TYPE": "acme",
        "TOKENCACHE_PROVIDER_ACME_TWO_TYPE": "plain",
        "TOKENCACHE_PROVIDER_ACME_TWO_TOKEN_URL": "u",
        "TOKENCACHE_PROVIDER_ACME_CLIENT_ID": "abc",
    }
    plan = Configuration.from_env(environ)
    tables = {name: set(table) for name, table in plan._tables.providers.items()}
    assert tables == {"acme": {"type", "grant_type", "client_id"}, "acme_two": {"type", "token_url"}}


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ('{"X-A": "1,2"}', {"X-A": "1,2"}),
        ("X-A = 1 , X-B=a=b", {"X-A": "1", "X-B": "a=b"}),
        ('{"X-A": 1}', None),
        ("{X-A", None),
        ("X-A", None),
    ],
)
def test_a_variable_can_hold_a_table(text: str, headers: dict[str, str] | None) -> None:
    """A table of texts is written as pairs or as JSON; any other text is an error."""
    environ = {f"TOKENCACHE_PROVIDER_ACME_{name.upper()}": str(value) for name, value in ACME.items()}
    plan = Configuration.from_env(environ | {"TOKENCACHE_PROVIDER_ACME_HEADERS": text})
    if headers is None:
        with pytest.raises(ConfigurationError, match="expected a table of texts; this text is not one"):
            plan.provider("acme")
    else:
        assert plan.provider("acme").provider.options["headers"] == headers  # type: ignore[union-attr,attr-defined]


def test_a_setting_beside_its_file_is_refused() -> None:
    """A variable for a setting and a variable for its file contradict each other."""
    Path("id").write_text("abc")
    environ = {f"TOKENCACHE_PROVIDER_ACME_{name.upper()}": str(value) for name, value in ACME.items()}
    with pytest.raises(ConfigurationError, match="client_id is set twice; remove one of the two"):
        Configuration.from_env(environ | {"TOKENCACHE_PROVIDER_ACME_CLIENT_ID_FILE": "id"}).provider("acme")


def test_a_type_of_a_variable_replaces_a_preset_of_the_file() -> None:
    """A provider has either a type or a preset, so the variable's type replaces the file's preset."""
    Path("tokencache.toml").write_text('[providers.acme]\npreset = "auth0"\nurl = "u"\nclient_id = "i"\n')
    environ = {"TOKENCACHE_CONFIG": "tokencache.toml", "TOKENCACHE_PROVIDER_ACME_TYPE": "acme"}
    assert Configuration.from_env(environ).provider("acme")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("TOKENCACHE_BACKENT", "did you mean 'tokencache_backend'?"),
        ("TOKENCACHE_POLICY_EARLI", "did you mean 'tokencache_policy_early'?"),
        ("TOKENCACHE_ENCRYPTION_KEY", "did you mean 'tokencache_encryption_keys'?"),
        (
            "TOKENCACHE_PROVIDER_NOBODY_URL",
            "this belongs to an unknown provider; set TOKENCACHE_PROVIDER_<NAME>_TYPE",
        ),
        ("TOKENCACHE_PROVIDER_ACME_CLIENTID", "this provider has no setting 'clientid'; did you mean 'client_id'?"),
        ("TOKENCACHE_PROVIDER_ACME_RETRIES", "expected a whole number; this text is not one"),
        ("TOKENCACHE_PROVIDER_ACME_POLICY_EARLY", "expected a number; this text is not one"),
        ("TOKENCACHE_PROVIDER_ACME_CLIENT_ID_FILE", "there is no such file"),
        ("TOKENCACHE_POLICY_EARLY", "expected a number; this text is not one"),
        ("TOKENCACHE_ENCRYPTION_KEYS", "a key has 32 bytes"),
        ("TOKENCACHE_ENCRYPTION_FROM_PROVIDER", "expected true or false"),
    ],
)
def test_a_mistake_in_a_variable_is_reported(name: str, said: str) -> None:
    """The error names the unknown or mistyped variable and the closest known one, and never the value (INV-9)."""
    environ = {
        "TOKENCACHE_PROVIDER_ACME_TYPE": "acme",
        "TOKENCACHE_PROVIDER_ACME_URL": "u",
        **({} if name.endswith("ID_FILE") else {"TOKENCACHE_PROVIDER_ACME_CLIENT_ID": "i"}),
        name: PLANTED,
    }
    with pytest.raises(ConfigurationError) as caught:
        TokenCache.from_env(environ).source("acme")
    assert f"environment: {name}: " in str(caught.value)
    assert said in str(caught.value)
    assert PLANTED not in str(caught.value).replace(f"file {Path.cwd() / PLANTED}", "")


def test_the_variables_of_kubernetes_are_ignored() -> None:
    """A service named `tokencache` adds variables of the same prefix to every pod; they are not mistakes."""
    names = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_6379_TCP", "PORT_6379_TCP_ADDR"]
    environ = {f"TOKENCACHE_{prefix}{name}": "10.0.0.1" for name in names for prefix in ("", "REDIS_")}
    assert Configuration.from_env(environ).backend == "memory://"


# --- several backends -------------------------------------------------------------------------------------------


def test_each_backend_is_opened_when_it_is_needed_and_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend is opened when a source needs it, shared by its sources, and closed once."""
    opened: list[str] = []
    closed: list[str] = []

    class Noted(MemoryBackend):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name
            opened.append(name)

        def close(self) -> None:
            closed.append(self.name)
            super().close()

    monkeypatch.setattr("tokencache.plugins.open_backend", lambda url: Noted(str(url)))
    document = {
        "backend": "memory://main",
        "backends": {"far": "memory://far", "unused": "memory://unused"},
        "providers": {
            "one": ACME,
            "two": ACME | {"client_id": "two", "backend": "far"},
            "three": ACME | {"client_id": "three", "backend": "far"},
            "four": ACME | {"client_id": "four", "backend": "memory://main"},
        },
    }
    cache = TokenCache.from_config(document, environ={})
    assert opened == []
    assert "main" not in repr(cache)
    sources = {name: cache.source(name) for name in ("two", "three")}
    assert opened == ["memory://far"]
    sources |= {name: cache.source(name) for name in ("one", "four")}
    assert opened == ["memory://far", "memory://main"]
    assert sources["two"]._world.backend is sources["three"]._world.backend
    assert sources["one"]._world.backend is sources["four"]._world.backend
    assert sources["one"]._world.reads is not sources["two"]._world.reads
    cache.close()
    assert sorted(closed) == sorted(opened)
    with pytest.raises(BackendClosed):
        cache.source("one")


def test_all_backends_are_closed_from_a_loop(tmp_path: Path) -> None:
    """`aclose` closes each opened backend; sources on each of them work from loops."""
    document = {
        "backends": {"local": f"file://{tmp_path}/tokens"},
        "providers": {"one": ACME, "two": ACME | {"client_id": "two", "backend": "local"}},
    }

    async def main() -> None:
        async with TokenCache.from_config(document, environ={}) as cache:
            assert (await cache.source("one").atoken()).value == "token-of-abc"
            assert (await cache.source("two").atoken()).value == "token-of-two"
        for handle in cache._resolver.handles:
            with pytest.raises(BackendClosed):
                handle.backend.load("k")

    asyncio.run(main())


def test_code_overrides_the_file(tmp_path: Path) -> None:
    """Keywords of `from_config` replace the file's settings; a backend among them holds for every source."""
    document = {
        "namespace": "file:",
        "policy": {"early": 1},
        "encryption": {"keys": ["no key"]},
        "backends": {"far": "redis://nowhere.invalid", "near": f"file://{tmp_path}/near"},
        "providers": {"acme": ACME | {"backend": "far"}},
    }
    backend, events = MemoryBackend(), Recorder()
    cache = TokenCache.from_config(
        document,
        environ={},
        backend=backend,
        namespace="code:",
        policy=RefreshPolicy(early=2),
        encrypt=KEY,
        observers=[events],
    )
    source = cache.source("acme")
    source.token()
    assert source.key.startswith("code:acme:")
    assert source._policy.early == 2
    assert b"sealed" in backend.load(source.key).data  # type: ignore[union-attr]
    assert events.events
    cache.close()
    assert backend.load(source.key)  # a backend that was passed in stays open
    with TokenCache.from_config(document, environ={}, backend="near", encrypt=KEY) as cache:
        assert cache.source("acme")._world.backend.name == "file"
    own = RefreshPolicy(early=3)
    with TokenCache.from_config({"providers": {"acme": ACME | {"policy": {"early": 4}}}}, environ={}) as cache:
        assert cache.source("acme", policy=own)._policy == own
        assert cache.source("acme", key="mine").key == "mine"


def test_a_password_can_be_set_beside_its_url() -> None:
    """User and password of a backend are put into its URL, and no repr shows the password (INV-9)."""
    backends = {"far": {"url": "rediss://cache.example:6380/1", "username": "orders", "password": {"env": "PW"}}}
    plan = Configuration.load({"backend": "far", "backends": backends}, environ={"PW": "a@/:%"})
    url = plan.backend_url()
    assert (url.username, url.password, url.hosts) == ("orders", "a@/:%", (("cache.example", 6380),))
    assert str(url) == "rediss://orders:***@cache.example:6380/1"


def test_a_key_from_the_provider_needs_a_credential() -> None:
    """`from_provider = true` seals with a key for each provider, and refuses a provider without a credential."""
    document = {"encryption": {"from_provider": True}, "providers": {"acme": ACME}}
    assert "holds no Secret" in complaint(document)
    provider = {"acme": ACME | {"client_secret": "s"}}
    with TokenCache.from_config({"encryption": {"from_provider": True}, "providers": provider}, environ={}) as cache:
        source = cache.source("acme")
        source.token()
        assert b"sealed" in cache._backend.load(source.key).data  # type: ignore[union-attr]


def test_importing_tokencache_loads_no_configuration() -> None:
    """`import tokencache`, and a cache without a configuration, load neither the config modules nor a TOML reader."""
    code = (
        "import sys; from tokencache import TokenCache; TokenCache('memory://').close()\n"
        "ours = [name for name in sys.modules if name.startswith('tokencache') and 'config' in name]\n"
        "print(ours + [name for name in ('tomllib', 'tokencache._crypto') if name in sys.modules])"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    ran = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("mode", [0o646, 0o666])
def test_a_found_file_that_others_can_write_to_is_refused(mode: int) -> None:
    """A stranger's `tokencache.toml` could send this user's secrets to any address."""
    found = Path("tokencache.toml")
    found.write_text("")
    found.chmod(mode)
    assert "other users can write to this file; read it, then name it by hand" in complaint()
    found.chmod(0o644)
    assert Configuration.load(environ={})


def test_a_found_file_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may own it, as in an image of a container; another user may not."""
    Path("tokencache.toml").write_text("")
    owner = Path("tokencache.toml").stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    if owner == 0:
        assert Configuration.load(environ={})
    monkeypatch.setattr(Path, "stat", _owned_by(owner + 2))
    assert "another user owns this file" in complaint()


def test_a_named_file_that_others_can_write_to_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The user named it; the log says what is wrong, and which file is used."""
    Path("mine.toml").write_text('namespace = "mine:"')
    Path("mine.toml").chmod(0o666)
    caplog.set_level("INFO", "tokencache")
    assert Configuration.load("mine.toml", environ={}).namespace == "mine:"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "other users can write to this file" in caplog.text
    assert f"the configuration is that of {Path('mine.toml').absolute()}" in caplog.text


def _owned_by(owner: int) -> Callable[..., os.stat_result]:
    """Return a ``stat`` that reports another owner."""
    real = Path.stat

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        about = real(path, follow_symlinks=follow_symlinks)
        return os.stat_result([*about[:4], owner, *about[5:10]])

    return stat
