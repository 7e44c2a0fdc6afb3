"""The configuration on the command line: five lines of TOML give a token, and `config` reports mistakes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest
from typer.testing import CliRunner

from tokencache.backends.file import FileBackend
from tokencache.cli import config_check
from tokencache.cli._exit import Exit
from tokencache.cli.app import app
from tokencache.config._schema import schema
from tokencache.plugins import PROVIDERS, known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCHEMA = Path(__file__).parents[2] / "docs" / "tokencache.schema.json"
PLANTED = "planted-client-secret-41e7"
KEY = bytes(range(32)).hex()
run = CliRunner()

FIVE_LINES = """\
[providers.acme]
type = "client_credentials"
token_url = "{url}/oauth/token"
client_id = "abc"
client_secret = {{ env = "ACME_SECRET" }}
"""


class TokenServer:
    """A token endpoint on loopback; ``logins`` holds the received forms, with the Authorization header."""

    def __init__(self) -> None:
        self.logins: list[tuple[dict[str, list[str]], str | None]] = []
        logins = self.logins

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                logins.append((form, self.headers["Authorization"]))
                body = json.dumps(
                    {"access_token": f"token-{len(logins)}", "token_type": "Bearer", "expires_in": 3600}
                ).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[TokenServer]:
    """A token endpoint."""
    running = TokenServer()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new working folder and cache folder, without the variables of tokencache."""
    for name in list(os.environ):
        if name.startswith(("TOKENCACHE_", "QPAY_")) or name == "REDIS_DATABASE_URI":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ACME_SECRET", PLANTED)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    return home


def write(text: str, path: str = "tokencache.toml") -> Path:
    """Write a configuration that only its owner can read."""
    file = Path(path)
    file.write_text(text)
    file.chmod(0o600)
    return file


def checked(*arguments: str) -> tuple[int, str]:
    """Run `config check`; return its exit code and its output, which must not contain a secret."""
    ran = run.invoke(app, ["config", "check", *arguments])
    assert PLANTED not in ran.output
    assert KEY not in ran.output
    return ran.exit_code, ran.output


# --- commands ---------------------------------------------------------------------------------------------------


def test_five_lines_give_a_token(server: TokenServer, tmp_path: Path) -> None:
    """Five lines and `tokencache token acme --config …`: two runs, one login, by HTTP basic."""
    path = tmp_path / "somewhere.toml"
    path.write_text(FIVE_LINES.format(url=server.url))
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-m", "tokencache", "token", "acme", "--config", str(path)],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "token-1\n", "")
    assert len(server.logins) == 1
    form, authorization = server.logins[0]
    assert form["grant_type"] == ["client_credentials"]
    assert authorization is not None
    assert authorization.startswith("Basic ")


def test_the_file_is_found_without_an_option(
    server: TokenServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is that of `--config`, else of `TOKENCACHE_CONFIG`, else the one in the working folder."""
    table = FIVE_LINES.format(url=server.url)
    for name in ("here", "variable", "option"):
        write(f'namespace = "{name}:"\n{table}', "tokencache.toml" if name == "here" else str(tmp_path / name))

    def key(*options: str) -> str:
        ran = run.invoke(app, ["status", "acme", "--json", *options])
        assert ran.exit_code == 0, ran.output
        found: str = json.loads(ran.stdout)["key"]
        return found

    assert key().startswith("here:acme:")
    monkeypatch.setenv("TOKENCACHE_CONFIG", str(tmp_path / "variable"))
    assert key().startswith("variable:acme:")
    assert key("--config", str(tmp_path / "option")).startswith("option:acme:")


def test_every_command_takes_the_configuration(server: TokenServer, tmp_path: Path) -> None:
    """`status`, `invalidate`, `doctor`, `verify` and `tail` see the provider, the backend and the keys of the file."""
    path = write(
        f'namespace = "orders:"\nbackend = "main"\n[backends]\nmain = "file://{tmp_path}/tokens"\n'
        f'[encryption]\nkeys = ["{KEY}"]\n{FIVE_LINES.format(url=server.url)}key = "orders-key"\n',
        str(tmp_path / "t.toml"),
    )
    config = ("--config", str(path))
    assert run.invoke(app, ["token", "acme", *config]).stdout == "token-1\n"
    status = json.loads(run.invoke(app, ["status", "acme", "--json", *config]).stdout)
    assert (status["stored"], status["backend"], status["key"]) == ("ours", "file", "orders-key")
    data = FileBackend(tmp_path / "tokens").load(status["key"])
    assert data is not None
    assert b"sealed" in data.data
    verdict = json.loads(run.invoke(app, ["verify", "acme", "--json", "-p", "1", *config]).stdout)
    assert (verdict["shared"], verdict["logins"], verdict["key"]) == (True, 0, status["key"])
    doctor = json.loads(run.invoke(app, ["doctor", "acme", "--json", *config]).stdout)
    assert (doctor["key"], doctor["logins"]) == (status["key"], 0)
    record = next(entry for entry in doctor["findings"] if entry["check"] == "record")
    assert record["mark"] == "ok"
    tail = run.invoke(app, ["tail", "acme", "--for", "0", "--json", *config])
    seen = json.loads(tail.stdout.splitlines()[0])
    assert (seen["event"], seen["reason"]) == ("present", "cold")
    assert seen["expires_at"] == pytest.approx(status["expires_at"], abs=1)
    assert "token dropped" in run.invoke(app, ["invalidate", "acme", *config]).stdout
    assert len(server.logins) == 1


@pytest.mark.parametrize("table", ["", 'backend = "other"\n'], ids=["of all", "of the provider"])
def test_the_backend_option_wins(server: TokenServer, tmp_path: Path, table: str) -> None:
    """`--backend` overrides the backend of the file and of the provider's table; it may be a name from the file."""
    write(
        f'backend = "other"\n[backends]\nother = "redis://127.0.0.1:1"\nnear = "file://{tmp_path}/near"\n'
        f"{FIVE_LINES.format(url=server.url)}{table}"
    )
    for backend in ("near", f"file://{tmp_path}/near"):
        assert run.invoke(app, ["token", "acme", "--backend", backend]).stdout == "token-1\n"
    verdict = json.loads(run.invoke(app, ["verify", "acme", "--json", "-p", "1", "--backend", "near"]).stdout)
    assert verdict["shared"]
    assert run.invoke(app, ["status", "acme"]).exit_code == Exit.UNAVAILABLE
    assert len(server.logins) == 1


def test_the_backend_of_a_variable_overrides_the_file(
    server: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`TOKENCACHE_BACKEND` overrides the file, `REDIS_DATABASE_URI` does not."""
    write(f'backend = "file://{tmp_path}/file"\n{FIVE_LINES.format(url=server.url)}')
    monkeypatch.setenv("REDIS_DATABASE_URI", "redis://127.0.0.1:1")
    assert run.invoke(app, ["token", "acme"]).exit_code == 0
    assert (tmp_path / "file").exists()
    monkeypatch.setenv("TOKENCACHE_BACKEND", f"file://{tmp_path}/variable")
    assert run.invoke(app, ["token", "acme"]).exit_code == 0
    assert (tmp_path / "variable").exists()


def test_a_provider_of_variables_alone(server: TokenServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`TOKENCACHE_PROVIDER_ACME_…` alone gives a token, with a mounted secret."""
    (tmp_path / "mounted").write_text(f"{PLANTED}\n")
    settings = {
        "TYPE": "client_credentials",
        "TOKEN_URL": f"{server.url}/t",
        "CLIENT_ID": "abc",
        "CLIENT_AUTH": "client_secret_post",
        "CLIENT_SECRET_FILE": str(tmp_path / "mounted"),
        "SCOPE": "read write",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"TOKENCACHE_PROVIDER_ACME_{name}", value)
    ran = run.invoke(app, ["token", "acme"])
    assert (ran.exit_code, ran.stdout) == (0, "token-1\n"), ran.stderr
    form, _ = server.logins[0]
    assert (form["client_secret"], form["scope"]) == ([PLANTED], ["read write"])


def test_a_wrong_configuration_exits_2(folder: Path) -> None:
    """Every command ends with 2 and one paragraph that names file, key and remedy."""
    write("[providers.acme]\ntype = 'client_credentials'\ntoken_urk = 'x'\n")
    for command in ("token", "status", "invalidate", "verify", "tail"):
        ran = run.invoke(app, [command, "acme"])
        assert (ran.exit_code, ran.stdout) == (Exit.USAGE, ""), command
        assert ran.stderr == (
            "tokencache: tokencache.toml: providers.acme.token_urk: there is no setting of this name;"
            " did you mean 'token_url'?\n"
        )
    ran = run.invoke(app, ["doctor", "acme", "--json"])
    finding = next(entry for entry in json.loads(ran.stdout)["findings"] if entry["subject"] == "acme")
    assert "did you mean 'token_url'?" in finding["seen"]


# --- config check -----------------------------------------------------------------------------------------------


def test_a_good_configuration_has_no_finding() -> None:
    """Everything in order: exit 0 and one line."""
    write(FIVE_LINES.format(url="https://id.acme.example"))
    assert checked() == (0, "tokencache.toml: 0 errors, 0 warnings; providers: acme\n")


def test_check_finds_all_mistakes_at_once() -> None:
    """One line per mistake, each with file, key and remedy, in working and broken providers."""
    write(
        """
        namespce = "x:"
        backend = "mian"
        [backends]
        main = "redis://localhost?colour=blue"
        far = { env = "NOT_SET" }
        [policy]
        earli = 5
        [encryption]
        keys = ["short"]
        [providers.acme]
        type = "client_credentials"
        token_urk = "https://id.acme.example"
        client_secret = { env = "NOT_THERE" }
        default_lifetime = "long"
        [providers.other]
        type = "client_credentials"
        client_id = "abc"
        """
    )
    code, text = checked()
    assert code == Exit.USAGE
    lines = text.splitlines()
    keys = [line.partition("tokencache.toml: ")[2].partition(":")[0] for line in lines if line.startswith("error")]
    assert keys == [
        "namespce",
        "policy.earli",
        "encryption.keys[0]",
        "backend",
        "backends.main",
        "backends.far",
        "providers.acme.token_urk",
        "providers.acme.client_secret",
        "providers.acme.default_lifetime",
        "providers.other",
    ]
    assert "did you mean 'token_url'?" in text
    assert "set NOT_THERE where this runs" in text
    assert lines[-1].startswith("tokencache.toml: 10 errors, ")
    code, text = checked("--json")
    report = json.loads(text)
    assert (code, report["ok"], report["file"], report["providers"]) == (2, False, "tokencache.toml", ["acme", "other"])
    assert [entry["key"] for entry in report["findings"] if entry["severity"] == "error"] == keys


def test_check_warns_of_secrets_in_the_file() -> None:
    """A plain client secret, key or password is a warning, and so is its default; a file that others can read too."""
    file = write(
        f"""
        [backends]
        main = "redis://:{PLANTED}@localhost"
        far = {{ url = "redis://localhost", password = "{PLANTED}" }}
        fine = {{ url = "redis://localhost", password = {{ env = "ACME_SECRET" }} }}
        [encryption]
        keys = ["{KEY}", {{ env = "ACME_KEY", default = "{KEY}" }}]
        [providers.acme]
        type = "client_credentials"
        token_url = "https://id.acme.example"
        client_id = "abc"
        client_secret = "{PLANTED}"
        """
    )
    code, text = checked()
    keys = [line.split(": ")[1] for line in text.splitlines() if line.startswith("warning")]
    assert code == 0
    assert keys == [
        "backends.main",
        "backends.far.password",
        "encryption.keys[0]",
        "encryption.keys[1]",
        "providers.acme.client_secret",
    ]
    write(f'backend = "redis://:{PLANTED}@localhost"\n')
    assert "warning  tokencache.toml: backend: a secret stands here in plain text; refer to it: " in checked()[1]
    write('backend = "redis://localhost"\n')
    assert checked() == (0, "tokencache.toml: 0 errors, 0 warnings; providers: none\n")
    write(f'backend = "redis://:{PLANTED}@localhost"\n').chmod(0o640)
    code, text = checked()
    assert code == 0
    assert (
        "warning  tokencache.toml: others can read this file, and it holds a secret; chmod 600 tokencache.toml" in text
    )
    write(FIVE_LINES.format(url="https://id.acme.example")).chmod(0o644)
    assert "warning " not in checked()[1]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_check_makes_no_network_connection(server: TokenServer, tmp_path: Path) -> None:
    """No login, no connection to a backend, no folder: objects are made but not used."""
    write(
        f'backend = "main"\n[backends]\nmain = "redis://127.0.0.1:{server.url.rpartition(":")[2]}"\n'
        f'local = "file://{tmp_path}/tokens"\n{FIVE_LINES.format(url=server.url)}'
    )
    assert checked()[0] == 0
    assert server.logins == []
    assert not (tmp_path / "tokens").exists()


def test_check_takes_a_path_or_finds_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, the variable, the working folder; without any of them, exit 2 and both ways to name it."""
    code, text = checked()
    assert code == Exit.USAGE
    assert "TOKENCACHE_CONFIG" in text
    named = write(FIVE_LINES.format(url="https://id.acme.example"), str(tmp_path / "named.toml"))
    assert checked(str(named))[1].startswith(f"{named}: 0 errors")
    monkeypatch.setenv("TOKENCACHE_CONFIG", str(named))
    assert checked()[1].startswith(f"{named}: 0 errors")
    assert checked(str(tmp_path / "nowhere.toml"))[0] == Exit.USAGE
    named.write_text("[providers\n")
    code, text = checked("--json")
    assert (code, json.loads(text)["findings"][0]["key"]) == (Exit.USAGE, "")
    assert "line 1, column" in text


def test_check_reads_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables count as for every other command, also without a file."""
    monkeypatch.setenv("TOKENCACHE_POLICY_EARLI", "5")
    code, text = checked()
    assert code == Exit.USAGE
    assert text.startswith("error    environment: TOKENCACHE_POLICY_EARLI: there is no variable of tokencache")
    assert text.splitlines()[-1] == "variables: 1 errors, 0 warnings; providers: none"


def test_check_demands_a_credential_for_a_derived_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `from_provider` each provider is checked for a credential to derive the key from."""
    write(f"[encryption]\nfrom_provider = true\n{FIVE_LINES.format(url='https://id.acme.example')}")
    assert checked()[0] == 0
    monkeypatch.setattr("tokencache.providers.oauth2.ClientCredentials.identity", lambda _: {"client_id": "abc"})
    code, text = checked()
    assert code == Exit.USAGE
    assert "providers.acme: [acme] encrypt='provider' derives the key" in text


# --- config schema ----------------------------------------------------------------------------------------------


def own_schema() -> dict[str, object]:
    """Return the schema with the providers of this distribution."""
    return schema([plugin for plugin in known(PROVIDERS) if plugin.distribution == "tokencache"])


def test_the_committed_schema_is_that_of_the_code() -> None:
    """docs/tokencache.schema.json is the generated one; renew it with `python tests/processes/test_config_cli.py`."""
    assert json.loads(SCHEMA.read_text()) == own_schema()


def test_the_command_prints_the_schema() -> None:
    """`config schema` prints valid JSON with the installed providers, and no other text."""
    ran = run.invoke(app, ["config", "schema"])
    printed = json.loads(ran.stdout)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert set(printed) == set(own_schema())
    assert {"client_credentials", "qpay"} <= set(printed["definitions"]["provider"]["properties"]["type"]["enum"])


def test_a_secret_is_write_only_in_the_schema() -> None:
    """The schema marks secret settings, and allows a reference in place of a secret."""
    provider = own_schema()["definitions"]["provider"]  # type: ignore[index]
    tables = {rule["then"]["properties"]["type"]["const"]: rule["then"]["properties"] for rule in provider["allOf"]}
    assert tables["client_credentials"]["client_secret"] == {"$ref": "#/definitions/secret"}
    assert tables["client_credentials"]["client_id"] == {"$ref": "#/definitions/text"}
    definitions = own_schema()["definitions"]
    assert definitions["secret"]["writeOnly"]  # type: ignore[index]
    assert {"$ref": "#/definitions/reference"} in definitions["secret"]["anyOf"]  # type: ignore[index]
    assert "name" not in tables["client_credentials"]


def fits(value: object, form: dict[str, Any], root: dict[str, Any]) -> bool:
    """Return whether a value fits a schema, by the keywords of draft 7 that ours uses; others raise ``KeyError``."""
    kinds = {"string": str, "object": dict, "array": list, "boolean": bool, "integer": int, "number": (int, float)}

    def typed(kind: str) -> bool:
        return isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool))  # type: ignore[arg-type]

    def known(properties: dict[str, Any]) -> bool:
        return not isinstance(value, dict) or all(
            fits(each, properties[name], root) for name, each in value.items() if name in properties
        )

    def others(rest: object) -> bool:
        new = [each for name, each in value.items() if name not in form.get("properties", {})]  # type: ignore[union-attr,attr-defined]
        return not new if rest is False else all(fits(each, rest, root) for each in new)  # type: ignore[arg-type]

    rules: dict[str, Callable[[Any], bool]] = {
        "$ref": lambda path: fits(value, root["definitions"][path.rpartition("/")[2]], root),
        "type": typed,
        "const": lambda one: value == one,
        "enum": lambda choices: value in choices,
        "minimum": lambda least: value >= least,
        "minItems": lambda least: len(value) >= least,  # type: ignore[arg-type]
        "maxProperties": lambda most: len(value) <= most,  # type: ignore[arg-type]
        "required": lambda names: isinstance(value, dict) and set(names) <= set(value),
        "items": lambda each: all(fits(part, each, root) for part in value),  # type: ignore[attr-defined]
        "properties": known,
        "additionalProperties": others,
        "anyOf": lambda forms: any(fits(value, each, root) for each in forms),
        "oneOf": lambda forms: sum(fits(value, each, root) for each in forms) == 1,
        "allOf": lambda forms: all(fits(value, each, root) for each in forms),
        "if": lambda condition: not fits(value, condition, root) or fits(value, form["then"], root),
    }
    said = {"description", "title", "$schema", "definitions", "writeOnly", "then"}
    if "type" in form and not typed(form["type"]):
        return False
    return all(rules[keyword](rule) for keyword, rule in form.items() if keyword not in said)


ACME: dict[str, object] = {"type": "client_credentials", "token_url": "https://id.example", "client_id": "abc"}


@pytest.mark.parametrize(
    ("document", "good"),
    [
        ({}, True),
        ({"providers": {"acme": ACME | {"client_secret": {"env": "A"}}}}, True),
        ({"providers": {"acme": ACME | {"client_secret": {"env": "A", "json": "x"}}}}, False),
        ({"providers": {"acme": ACME | {"client_secret": {"file": "a", "json": "x", "default": ""}}}}, True),
        ({"providers": {"acme": ACME | {"client_secret": {"keyring": "a", "user": "b"}}}}, True),
        ({"providers": {"acme": ACME | {"clientid": "x"}}}, False),
        ({"providers": {"acme": ACME | {"name": "x"}}}, False),
        ({"providers": {"acme": ACME | {"scope": ["a", {"env": "B"}], "timeout": 5, "trust_jwt": True}}}, True),
        ({"providers": {"acme": ACME | {"timeout": "5"}}}, False),
        ({"providers": {"acme": ACME | {"encoding": "xml"}}}, False),
        ({"providers": {"acme": ACME | {"parameters": {"a": "b", "c": {"env": "D"}}}}}, True),
        ({"providers": {"acme": ACME | {"parameters": {"a": 5}}}}, False),
        ({"providers": {"acme": ACME | {"key": "k", "backend": "b", "policy": {"early": 5}, "keep_warm": True}}}, True),
        ({"providers": {"acme": ACME | {"policy": {"earli": 5}}}}, False),
        ({"providers": {"acme": {"type": "refresh_token", "token_url": "https://id.example"}}}, False),
        ({"providers": {"acme": {"token_url": "x"}}}, False),
        ({"providers": {"acme": {"type": "unknown"}}}, False),
        ({"backend": "m", "backends": {"m": "redis://h", "n": {"url": "redis://h", "password": {"env": "P"}}}}, True),
        ({"backends": {"m": {"password": "p"}}}, False),
        ({"encryption": {"keys": [{"file": "k"}, "plain"]}, "policy": {"early": 5}, "namespace": "n:"}, True),
        ({"encryption": {"keys": ["a"], "from_provider": True}}, False),
        ({"encryption": {"keys": []}}, False),
        ({"backend": 5}, False),
        ({"namspace": "n"}, False),
    ],
)
def test_the_schema_agrees_with_the_reader(document: dict[str, object], good: bool) -> None:
    """An editor marks exactly the mistakes that the reader reports."""
    assert fits(document, own_schema(), own_schema()) == good


def test_a_provider_without_its_extra_does_not_break_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that cannot be loaded is in the list of types, without settings; the other providers are complete."""
    from tokencache import ConfigurationError
    from tokencache import plugins as module

    load = module.load_provider_factory

    def failing(name: str) -> object:
        if name == "qpay":
            message = "pip install 'tokencache[x]'"
            raise ConfigurationError(message)
        return load(name)

    monkeypatch.setattr(module, "load_provider_factory", failing)
    provider = own_schema()["definitions"]["provider"]  # type: ignore[index]
    named = {rule["if"]["properties"]["type"]["const"] for rule in provider["allOf"]}
    assert "qpay" in provider["properties"]["type"]["enum"]
    assert "qpay" not in named
    assert "client_credentials" in named


def test_check_reports_its_findings_as_values() -> None:
    """A report consists of plain values, for use by a program."""
    write(FIVE_LINES.format(url="https://id.acme.example"))
    report = config_check.check(None)
    assert report.as_dict() == {"file": "tokencache.toml", "ok": True, "providers": ["acme"], "findings": []}


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        SCHEMA.write_text(json.dumps(own_schema(), indent=2) + "\n")
