"""`tokencache new`: the written package works, is found, and its own tests hold it to the contract."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from tokencache.cli.app import app
from tokencache.cli.new import create
from tokencache.errors import ConfigurationError
from tokencache.testing.token_server import TokenServer, json_reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokencache.cli.new import Kind

    Break = Callable[[str], str]

ROOT = Path(__file__).parents[2]
SECRET = "planted-secret"


def new(*arguments: str) -> tuple[int, str, str]:
    """Run the command; return exit code, stdout and stderr."""
    ran = CliRunner().invoke(app, ["new", *arguments])
    return ran.exit_code, ran.stdout, " ".join(ran.stderr.split())


def module_of(folder: Path) -> Path:
    """Return the file with the implementation."""
    (module,) = folder.glob("src/*/__init__.py")
    return module


def environment_of(folder: Path) -> dict[str, str]:
    """Return an environment in which a package counts as installed: its source, and metadata as pip writes it."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    site = folder.parent / f"site-{folder.name}"
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    others = ("TOKENCACHE_", "PYTEST_", "COV")
    cleared = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return cleared | {"PYTHONPATH": os.pathsep.join([str(site), str(folder / "src")]), "PYTHONDONTWRITEBYTECODE": "1"}


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a Python module in the package's folder, as if the package were installed."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment_of(folder) | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def prove(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the package's own tests."""
    return run(folder, "pytest", "-q", "-p", "no:cacheprovider", *options)


# --- what is written


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("backend", "shop"), ("provider", "acme")])
def test_the_tests_of_a_new_package_pass(kind: Kind, name: str, tmp_path: Path) -> None:
    """The written package keeps the whole contract, with its entry point and with warnings as errors."""
    ran = prove(create(kind, name, str(tmp_path / "made")))
    assert ran.returncode == 0, ran.stdout[-2000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) > 60
    assert "skipped" not in ran.stdout


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("backend", "x"),
        ("backend", "redis+shop-eu"),
        ("backend", "a234567890-b234567890-c2345678"),
        ("provider", "x"),
        ("provider", "acme_eu-west"),
        ("provider", "a234567890-b234567890-c2345678"),
    ],
)
def test_a_new_package_is_clean_whatever_its_name(kind: Kind, name: str, tmp_path: Path) -> None:
    """ruff, with the package's own settings, finds no fault for short and long names, and keeps the format."""
    folder = create(kind, name, str(tmp_path / "made"))
    for command in (["check", "--no-cache"], ["format", "--no-cache", "--check"]):
        ran = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=folder, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout


@pytest.mark.slow
def test_new_packages_are_typed(tmp_path: Path) -> None:
    """The package is marked as typed by `py.typed`: mypy strict and pyright find no error in either kind."""
    sources = [create("backend", "shop", str(tmp_path / "one")), create("provider", "acme-eu", str(tmp_path / "two"))]
    checks = [["mypy", "--strict", f"--cache-dir={tmp_path / 'cache'}"], ["pyright", "--pythonpath", sys.executable]]
    for check in checks:
        ran = subprocess.run(
            [sys.executable, "-m", *check, *(str(folder / "src") for folder in sources)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout


def test_the_example_equals_the_written_package() -> None:
    """The example of a third-party backend is the output of `tokencache new backend sqlite`, to the letter."""
    from tokencache.cli.new import Names, files_of

    example = ROOT / "examples" / "tokencache-sqlite"
    written = files_of(Names("backend", "sqlite"))
    for path, text in written.items():
        assert (example / path).read_text() == text, f"{path} differs"


def test_the_package_is_written_into_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder it is written into the caller's working folder, and the next steps are printed."""
    monkeypatch.chdir(tmp_path)
    code, out, err = new("provider", "acme-eu")
    assert (code, err) == (0, "")
    assert "pip install -e 'tokencache-acme-eu[test]'" in out
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert written == [
        "tokencache-acme-eu/README.md",
        "tokencache-acme-eu/pyproject.toml",
        "tokencache-acme-eu/src/tokencache_acme_eu/__init__.py",
        "tokencache-acme-eu/src/tokencache_acme_eu/py.typed",
        "tokencache-acme-eu/tests/test_tokencache_acme_eu.py",
    ]


# --- it is found


def test_a_new_backend_is_found_by_its_scheme(tmp_path: Path) -> None:
    """Two runs of the command line share one login through a backend that is found by its URL."""
    folder = create("backend", "shop+store", str(tmp_path / "made"))
    url = f"shop+store://{tmp_path}/tokens.db"
    code = (
        "import sys\nfrom tokencache import TokenCache\n"
        "answer = {'access_token': sys.argv[2], 'expires_in': 60}\n"
        "print(TokenCache(sys.argv[1]).source(lambda: answer, key='k').token().value)\n"
    )
    environment = environment_of(folder)
    shown = [
        subprocess.run(
            [sys.executable, "-c", code, url, value], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for value in ("first", "second")
    ]
    assert shown == ["first\n", "first\n"]


@pytest.mark.parametrize("configured", [False, True], ids=["environment", "configuration"])
def test_a_new_provider_is_found_by_its_name(tmp_path: Path, configured: bool) -> None:
    """`tokencache token NAME` prints a token of the new provider, configured by its variables or by a table."""
    folder = create("provider", "acme", str(tmp_path / "made"))
    with TokenServer() as server:
        server.answer(json_reply({"access_token": "planted-token", "expires_in": 3600}))
        variables = {"ACME_CLIENT_SECRET": SECRET}
        if configured:
            table = f'[providers.shop]\ntype = "acme"\nbase_url = "{server.url}"\nclient_id = "client"\nscope = "a"\n'
            (folder / "tokencache.toml").write_text(table + 'client_secret = { env = "ACME_CLIENT_SECRET" }\n')
        else:
            variables |= {"ACME_BASE_URL": server.url, "ACME_CLIENT_ID": "client"}
        name = "shop" if configured else "acme"
        ran = run(folder, "tokencache", "token", name, "--backend", "memory://", **variables)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "planted-token\n", "")
    (asked,) = server.requests
    assert SECRET.encode() in asked.body


# --- what is refused


@pytest.mark.parametrize("kind", ["backend", "provider"])
@pytest.mark.parametrize(
    "name",
    ["", "Acme", "3scale", "-acme", "acme-", "a--b", "a b", "../acme", "a/b", "é", "acme\n", "a" * 31, "${name}"],
)
def test_an_invalid_name_is_refused(kind: Kind, name: str, tmp_path: Path) -> None:
    """A name that fits into no URL, module or entry point is an error that names the allowed form; no file is made."""
    with pytest.raises(ConfigurationError, match=f"the {kind} cannot be called .*; its name is .*letters"):
        create(kind, name, str(tmp_path / "made"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("backend", "redis", "tokencache 0.1.0 brings a backend 'redis' already"),
        ("backend", "redis+sentinel", "tokencache 0.1.0 brings a backend 'redis+sentinel' already"),
        ("provider", "client_credentials", "tokencache 0.1.0 brings a provider 'client_credentials' already"),
        ("backend", "qpay", "a package 'tokencache_qpay' is installed already"),
    ],
)
def test_a_name_that_is_taken_is_refused(kind: str, name: str, says: str, tmp_path: Path) -> None:
    """Two packages of one name would break each other, so a taken name is refused, and its owner named."""
    code, out, err = new(kind, name, "--into", str(tmp_path / "made"))
    assert (code, out) == (2, "")
    assert says in err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder with content, and a file, stay unchanged; an empty folder is filled."""
    full, file, empty = tmp_path / "full", tmp_path / "file", tmp_path / "empty"
    full.mkdir()
    empty.mkdir()
    (full / "mine").write_text("mine")
    file.write_text("mine")
    for taken in (full, file):
        code, out, err = new("backend", "shop", "--into", str(taken))
        assert (code, out) == (2, "")
        assert "exists already, and nothing was written; name another folder by --into" in err
    assert [path.name for path in full.iterdir()] == ["mine"]
    assert file.read_text() == "mine"
    assert new("backend", "shop", "--into", str(empty))[0] == 0
    assert module_of(empty).is_file()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file cannot have a folder below it: the error names the place, the system's reason and the remedy."""
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("mine")
    link.symlink_to(tmp_path / "nowhere")
    for place, reason in ((file / "made", "Not a directory"), (link, "File exists")):
        code, out, err = new("provider", "acme", "--into", str(place))
        assert (code, out) == (2, "")
        assert f"{place} cannot be written: {reason}; name another folder by --into" in err
    assert file.read_text() == "mine"


# --- its tests notice what is wrong


def without(part: str, instead: str = "") -> Break:
    """Return a function that removes a part from a source that contains it."""

    def broken(source: str) -> str:
        assert part in source
        return source.replace(part, instead)

    return broken


READ = "        raise_for_error(response, provider=self.name, secrets=secrets)\n"
DEAF = """\
        try:
            raise_for_error(response, provider=self.name, secrets=secrets)
        except ProviderUnavailable as error:
            error.retry_at = None
            raise
"""


@pytest.mark.parametrize(
    ("kind", "broken", "law"),
    [
        pytest.param(
            "backend",
            without(
                'cooldown = ? WHERE key = ? AND owner = ? AND fence = ? AND ends > ?"',
                'cooldown = ? WHERE key = ? AND (1 OR (owner = ? AND fence = ? AND ends > ?))"',
            ),
            "test_only_the_owner_releases",
            id="a release that does not look for its owner",
        ),
        pytest.param(
            "provider",
            lambda source: without(READ, DEAF)(source).replace(
                "import ConfigurationError", "import ConfigurationError, ProviderUnavailable"
            ),
            "test_a_pause_in_seconds_is_handed_on",
            id="a Retry-After that is not heard",
        ),
        pytest.param(
            "provider",
            without(READ),
            "test_a_token_in_an_error_is_not_taken",
            id="an error that is taken for an answer",
        ),
        pytest.param(
            "provider",
            without('            "scope": set(self._scope.split()),\n'),
            "test_whatever_makes_another_token_makes_another_identity",
            id="an identity without the scope",
        ),
        pytest.param(
            "provider",
            without("secrets = (self._client_secret,)", "secrets = ()"),
            "test_a_secret_that_the_server_repeats_stays_hidden",
            id="an error that quotes the secret",
        ),
    ],
)
def test_each_defect_fails_a_test_of_the_package(kind: Kind, broken: Break, law: str, tmp_path: Path) -> None:
    """The written tests detect defects: a defect that would harm a fleet fails the law about it."""
    folder = create(kind, "acme", str(tmp_path / "made"))
    module = module_of(folder)
    module.write_text(broken(module.read_text()))
    ran = prove(folder, "-k", law)
    assert ran.returncode == 1, ran.stdout[-2000:]
    assert re.search(r"\d+ failed", ran.stdout)
