"""`tokencache new`: writes a small working package of a backend or a provider, with the contract as its tests."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import typer

from tokencache.cli._exit import reported
from tokencache.errors import ConfigurationError

Kind: TypeAlias = Literal["backend", "provider"]

_TEMPLATES: Final = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "src/$package/__init__.py": "module.py",
    "src/$package/py.typed": None,
    "tests/test_$package.py": "test.py",
}
_LONGEST: Final = 30
_FORMS: Final = {"backend": r"[a-z][a-z0-9]*(?:[.-][a-z0-9]+)*", "provider": r"[a-z][a-z0-9]*(?:[_-][a-z0-9]+)*"}
_WANTED: Final = {
    "backend": "the scheme of its URLs: small letters and digits, in between also '+' and '-', as in redis+sentinel",
    "provider": "small letters and digits, in between also '-' and '_', as in acme or acme-eu",
}


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a new package, all derived from ``name``, its entry point."""

    kind: Kind
    name: str

    @classmethod
    def of(cls, kind: Kind, text: str) -> Names:
        """Return the names of a package; raises ``ConfigurationError`` for a name that is invalid or taken."""
        name = text.replace("+", ".") if kind == "backend" else text
        if len(name) > _LONGEST or not re.fullmatch(_FORMS[kind], name):
            message = f"the {kind} cannot be called {text[:_LONGEST]!r}; its name is {_WANTED[kind]}"
            raise ConfigurationError(message)
        names = cls(kind, name)
        names.require_free()
        return names

    @property
    def shown(self) -> str:
        """The name as users write it: a URL's scheme has a plus where the entry point has a dot."""
        return self.name.replace(".", "+")

    @property
    def words(self) -> list[str]:
        """The parts of the name."""
        return re.split(r"[._-]", self.name)

    @property
    def distribution(self) -> str:
        """The name for pip."""
        return "-".join(("tokencache", *self.words))

    @property
    def package(self) -> str:
        """The name for ``import``."""
        return "_".join(("tokencache", *self.words))

    def require_free(self) -> None:
        """Raise ``ConfigurationError`` if an installed distribution has this name already."""
        from importlib.util import find_spec

        from tokencache import plugins

        group = plugins.BACKENDS if self.kind == "backend" else plugins.PROVIDERS
        for plugin in plugins.known(group):
            if plugin.name == self.name:
                message = (
                    f"{plugin.distribution} {plugin.version} brings a {self.kind} {self.shown!r} already, which would"
                    " block the new one; choose another name"
                )
                raise ConfigurationError(message)
        if find_spec(self.package) is not None:
            message = f"a package {self.package!r} is installed already; choose another name than {self.shown!r}"
            raise ConfigurationError(message)

    def fields(self) -> dict[str, str]:
        """Return the values for the templates."""
        title = "".join(word.capitalize() for word in self.words)
        return {
            "name": self.name,
            "shown": self.shown,
            "title": " ".join(word.capitalize() for word in self.words),
            "distribution": self.distribution,
            "package": self.package,
            "prefix": "_".join(self.words).upper(),
            "backend": f"{title}Backend",
            "provider": f"{title}Provider",
        }


def files_of(names: Names) -> dict[str, str]:
    """Return the contents of a new package by path."""
    from importlib.resources import files
    from string import Template

    folder = files("tokencache.cli").joinpath("templates", names.kind)
    fields = names.fields()
    made: dict[str, str] = {}
    for path, template in _TEMPLATES.items():
        text = "" if template is None else folder.joinpath(f"{template}.tmpl").read_text(encoding="utf-8")
        made[Template(path).substitute(fields)] = Template(text).substitute(fields)
    return made


def create(kind: Kind, name: str, into: str | None = None) -> Path:
    """Write a new package into a missing or empty folder; return the folder.

    Raises ``ConfigurationError`` for an invalid name, and for a folder that is not empty or not writable.
    """
    names = Names.of(kind, name)
    folder = Path(into or names.distribution)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        message = f"{folder} exists already, and nothing was written; name another folder by --into, or remove it"
        raise ConfigurationError(message)
    made = files_of(names)
    try:
        for path, text in made.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        message = f"{folder} cannot be written: {error.strerror or type(error).__name__}; name another folder by --into"
        raise ConfigurationError(message) from None
    return folder


new_app = typer.Typer(
    help="Start a package of your own that brings a backend or a provider; its tests are the contract.",
    no_args_is_help=True,
)

Into = Annotated[
    str | None, typer.Option("--into", metavar="FOLDER", show_default="tokencache-NAME", help="Where to write it.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log each step to stderr.")]


@new_app.command()
def backend(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The scheme of its URLs.")],
    into: Into = None,
    verbose: Verbose = False,
) -> None:
    """Write a package that brings a backend: tokens in a SQLite file, until you put your store in its place."""
    with reported(verbose=verbose):
        _tell(create("backend", name, into))


@new_app.command()
def provider(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What `tokencache token` and `cache.source` call it.")],
    into: Into = None,
    verbose: Verbose = False,
) -> None:
    """Write a package that brings a provider: client credentials over HTTP, until you write your API's flow."""
    with reported(verbose=verbose):
        _tell(create("provider", name, into))


def _tell(folder: Path) -> None:
    """Print the folder and the next steps."""
    from shlex import quote

    (module,) = folder.glob("src/*/__init__.py")
    where = quote(str(folder))
    sys.stdout.write(
        f"{folder} is written; its tests pass as it stands. Next:\n"
        f"  pip install -e {quote(f'{folder}[test]')}\n"
        f"  cd {where} && pytest\n"
        f"  edit {quote(str(module))}\n"
    )
