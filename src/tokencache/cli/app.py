"""Commands: `token`, `status`, `invalidate`, `doctor`, `verify`, `tail`, `bench`, `plugins`, `config`, `new`, `demo`.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from tokencache.cli._exit import Exit, complain, reported, unwritten
from tokencache.cli.new import new_app

if TYPE_CHECKING:
    from tokencache import Token, TokenCache, TokenSource
    from tokencache.cli._bench_figures import Figures
    from tokencache.cli._streams import Stream
    from tokencache.cli.doctor import Result

_EXAMPLES = (
    "Examples:",
    "tokencache demo  ·  see it work, without server or credentials",
    "tokencache token qpay  ·  print a token; two runs share one login",
    'curl -H "$(tokencache token qpay --header)" https://…  ·  use it',
    "tokencache status qpay --json  ·  what is known, without secrets",
    "tokencache doctor qpay  ·  what is wrong, and the remedy",
    "tokencache verify qpay  ·  after a deployment: do processes share one login?",
    "tokencache tail qpay  ·  follow what the fleet does to its token",
    "tokencache bench --backend redis://localhost:6379/0  ·  what a token costs on your own servers",
    "tokencache token qpay --backend file:///run/tokens  ·  share it with your service",
    "tokencache config check  ·  what is wrong with tokencache.toml",
)
_CODES = (
    "Exit codes:",
    "0 done  ·  1 failed  ·  2 wrong usage or configuration, or a missing extra  ·  3 credentials rejected",
    "4 provider or backend unavailable, or out of time  ·  130 interrupted  ·  141 the reader of the output left",
)
_QPAY = ("The provider qpay is set up by QPAY_CLIENT_ID, QPAY_CLIENT_SECRET, QPAY_BASE_URL and QPAY_CACHE_KEY.",)

app = typer.Typer(
    name="tokencache",
    help="One valid access token for a whole fleet: fetched once, shared, renewed ahead of expiry.",
    epilog="\n\n".join((*_EXAMPLES, *_CODES)),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Provider = Annotated[
    str, typer.Argument(metavar="PROVIDER", help="Name of an installed provider; `tokencache plugins` lists them.")
]
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        "-b",
        metavar="URL",
        show_default="TOKENCACHE_BACKEND, the configuration's, REDIS_DATABASE_URI, or file://, your cache folder",
        help="Where tokens are shared, for example file:///run/tokens or redis://localhost:6379/0.",
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        show_default="TOKENCACHE_CONFIG, or tokencache.toml here",
        help="The file that sets up providers and backends.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log each step to stderr, without secrets.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=0.0, help="Give up after this time; by default 30 s."),
]


def run(stdout: Stream) -> int:
    """Run the command line with the arguments of this process; return the exit code.

    A failed write of the result decides the code, unless the command was interrupted.
    """
    code: object = Exit.OK
    try:
        app(prog_name="tokencache")
    except SystemExit as end:
        code = end.code
    with suppress(SystemExit):
        sys.stdout.flush()
    if stdout.failure is not None and code != Exit.INTERRUPTED:
        return unwritten(stdout.failure)
    return code if isinstance(code, int) else int(code is not None)


def _version(wanted: bool) -> None:
    """If ``wanted``, print the version and end."""
    if wanted:
        from tokencache.plugins import own_version

        _print(f"tokencache {own_version()}")
        raise typer.Exit(Exit.OK)


@app.callback()
def everywhere(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One valid access token for a whole fleet: fetched once, shared, renewed ahead of expiry."""


@app.command(epilog="\n\n".join((*_EXAMPLES[:1], *_EXAMPLES[2:4], *_QPAY)))
def token(
    provider: Provider,
    backend: Backend = None,
    config: Config = None,
    header: Annotated[bool, typer.Option("--header", help="Print a whole header line for curl -H.")] = False,
    as_json: AsJson = False,
    timeout: Timeout = None,
    verbose: Verbose = False,
) -> None:
    """Print a valid token. It is fetched only if no usable one is stored.

    The token is a secret: it goes to stdout, and everything else to stderr.
    """
    if header and as_json:
        message = "give --header or --json, not both"
        raise typer.BadParameter(message)
    with reported(verbose=verbose), _open(backend, config) as cache:
        source = cache.source(provider)
        got = source.token(timeout)
        if as_json:
            _print_json(_public(source, got) | {"token": got.value})
        else:
            _print(f"Authorization: {got.authorization}" if header else got.value)
        problem = source.status().problem
        if problem is not None:
            complain(
                "this token is not shared, and the next run logs in again, because the backend failed:"
                f" {problem}; {_ask_doctor(provider)}"
            )


@app.command(epilog="\n\n".join(_QPAY))
def status(
    provider: Provider,
    backend: Backend = None,
    config: Config = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show the state of a token: key, expiry, next refresh, lease, cooldown, backend. No secrets, no login.

    Exits 4 if the backend does not answer.
    """
    with reported(verbose=verbose), _open(backend, config) as cache:
        known = cache.source(provider).status()
        if as_json:
            _print_json(known.as_dict())
        else:
            from tokencache.cli._render import lines

            _print("\n".join(lines(known)))
        if not known.healthy:
            complain(f"the backend {known.backend} does not answer: {known.problem}; {_ask_doctor(provider)}")
            raise typer.Exit(Exit.UNAVAILABLE)


@app.command(epilog="\n\n".join(_QPAY))
def invalidate(provider: Provider, backend: Backend = None, config: Config = None, verbose: Verbose = False) -> None:
    """Drop the stored token, so that the next caller fetches another.

    A replacement that is stored in the meantime stays. This command fetches nothing.
    """
    with reported(verbose=verbose), _open(backend, config) as cache:
        source = cache.source(provider)
        known = source.status()
        if not known.healthy:
            complain(
                f"the backend {known.backend} does not answer, and nothing was dropped: {known.problem};"
                f" {_ask_doctor(provider)}"
            )
            raise typer.Exit(Exit.UNAVAILABLE)
        if known.stored != "ours" or known.usable_until is None:
            _print(f"[{known.provider}] nothing to drop: no usable token is stored at {known.key}")
        elif source.invalidate(source.token()):
            _print(f"[{known.provider}] token dropped; the next caller fetches another")
        else:
            _print(f"[{known.provider}] nothing dropped: another process has replaced the token")


@app.command(epilog="\n\n".join(_QPAY))
def doctor(
    provider: Annotated[
        str | None,
        typer.Argument(metavar="[PROVIDER]", help="Name of an installed provider; without it, only the backend."),
    ] = None,
    backend: Backend = None,
    config: Config = None,
    login: Annotated[
        bool | None,
        typer.Option(
            "--login/--no-login",
            show_default="only if no token is stored",
            help="Ask the provider for a token once, or never.",
        ),
    ] = None,
    as_json: AsJson = False,
    timeout: Timeout = None,
    verbose: Verbose = False,
) -> None:
    """Find out why a token is missing or not shared: one line per check, with the remedy.

    Checks settings, the way to the provider, clocks, the backend and its rights, record, lease, cooldown and token. No
    secrets, one login at most. Exits 1 if a check failed.
    """
    from tokencache.cli._setup import Setup
    from tokencache.cli.doctor import Doctor, document, line, summary, wants_colours

    with reported(verbose=verbose):
        examined = Doctor(provider, Setup(config, backend), login=login, timeout=timeout)
        results: list[Result] = []
        width = max(len("runtime"), len(provider or ""))
        for result in examined.results():
            results.append(result)
            if not as_json:
                _print(line(result, width, colours=wants_colours()))
                sys.stdout.flush()
        if as_json:
            _print_json(document(examined, results))
        else:
            _print(summary(results, examined.logins))
        if any(result.finding.mark == "failed" for result in results):
            raise typer.Exit(Exit.FAILED)


@app.command(epilog="\n\n".join(_QPAY))
def verify(
    provider: Provider,
    backend: Backend = None,
    config: Config = None,
    login: Annotated[bool, typer.Option("--login", help="Ask for a token even if a usable one is stored.")] = False,
    processes: Annotated[
        int, typer.Option("--processes", "-p", min=1, max=64, help="Number of fresh processes that read the token.")
    ] = 4,
    as_json: AsJson = False,
    timeout: Timeout = None,
    verbose: Verbose = False,
) -> None:
    """Check after a deployment that processes share one token, and measure the gain.

    It logs in twice at most. Exits 1 if the processes do not share the token.
    """
    from tokencache.cli._setup import Setup
    from tokencache.cli.verify import compare, show

    with reported(verbose=verbose):
        verdict = compare(provider, Setup(config, backend), processes=processes, login=login, timeout=timeout)
        if as_json:
            _print_json(verdict.as_dict())
        else:
            show(verdict)
        if verdict.reason is not None:
            complain(f"processes do not share the token: {verdict.reason}; {_ask_doctor(provider)}")
            raise typer.Exit(Exit.FAILED)


@app.command(epilog="\n\n".join(_QPAY))
def tail(
    provider: Provider,
    backend: Backend = None,
    config: Config = None,
    lasting: Annotated[
        float | None,
        typer.Option("--for", metavar="SECONDS", min=0.0, help="End after this time; by default Ctrl-C ends it."),
    ] = None,
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.01, max=60.0, help="Time between two reads.")
    ] = 0.2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    verbose: Verbose = False,
) -> None:
    """Follow what the fleet does to a token: fetches, leases, renewals, cooldowns, drops after a 401. No secrets.

    It only reads, a few times a second. Ctrl-C ends it.
    """
    from tokencache.cli._setup import Setup
    from tokencache.cli.tail import follow, opened

    with reported(verbose=verbose), suppress(KeyboardInterrupt), opened(provider, Setup(config, backend)) as seen:
        at, key, read = seen
        for change in follow(at, key, pause=every, lasting=lasting, read=read):
            _print(json.dumps(change.as_dict(), ensure_ascii=False) if as_json else change.line())
            sys.stdout.flush()


@app.command(epilog="\n\n".join(_QPAY))
def bench(
    provider: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROVIDER]", help="Provider whose login is timed, once per backend; by default a fake of 250 ms."
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", "-b", metavar="URL", help="Where tokens are shared; repeat it to compare."),
    ] = None,
    config: Config = None,
    processes: Annotated[
        int, typer.Option("--processes", "-p", min=1, max=64, help="Number of processes in the stampede.")
    ] = 8,
    threads: Annotated[int, typer.Option("--threads", "-t", min=1, max=256, help="Threads of each process.")] = 16,
    picture: Annotated[
        str | None, typer.Option("--picture", metavar="FILE", help="Draw the figures into this SVG file.")
    ] = None,
    as_json: AsJson = False,
    timeout: Timeout = None,
    verbose: Verbose = False,
) -> None:
    """Measure the cost of a token on your own servers: first, cached, from the store, and in a stampede.

    It logs in once per backend and deletes the token at the end. The stampede uses a made-up token. No secrets.
    """
    from tokencache.cli._bench_picture import picture_place, save
    from tokencache.cli._setup import Setup
    from tokencache.cli.bench import Size, measure

    with reported(verbose=verbose):
        place = None if picture is None else picture_place(picture)
        setups = [Setup(config, url) for url in (backend or (None,))]
        report = measure(provider, setups, Size(processes, threads, timeout), None if as_json else _show)
        if as_json:
            _print_json(report.as_dict())
        if place is not None:
            save(report, place)
            complain(f"the picture is {place}")


@app.command()
def plugins(
    backend: Annotated[
        str | None,
        typer.Option("--backend", "-b", metavar="URL", help="Also open this backend, to check that it is usable."),
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """List the installed backends and providers, each with its distribution."""
    from tokencache.cli._render import installed, table

    with reported(verbose=verbose):
        rows = installed()
        if backend is not None:
            from tokencache import TokenCache

            with TokenCache(backend):
                complain("the backend can be opened")
        if as_json:
            _print_json({"plugins": rows})
        else:
            _print("\n".join(table(rows)))


@app.command()
def demo(
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            "-b",
            metavar="URL",
            show_default="file:// in a fresh folder",
            help="Where the fleet shares its token.",
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """See it work against a fake server: fetch, share, renew, replace after a 401.

    It needs no server and no credentials, and takes less than a minute. Exits 1 if a figure breaks a promise.
    """
    from tokencache.cli.demo import show

    with reported(verbose=verbose):
        kept = show(backend)
        if not kept:
            raise typer.Exit(Exit.FAILED)


config_app = typer.Typer(help="Check a configuration, or print its schema.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(new_app, name="new")


@config_app.command()
def check(
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="By default TOKENCACHE_CONFIG, or tokencache.toml here."),
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check a configuration: each setting, each reference, and each provider. No login.

    Prints one line per finding, with file, key and remedy. Exits 2 for an error; warnings do not count.
    """
    from tokencache.cli.config_check import check as examined

    with reported(verbose=verbose):
        report = examined(file)
        if as_json:
            _print_json(report.as_dict())
        else:
            _print("\n".join((*(remark.line() for remark in report.remarks), report.summary())))
        if not report.good:
            raise typer.Exit(Exit.USAGE)


@config_app.command()
def schema(verbose: Verbose = False) -> None:
    """Print the JSON schema of tokencache.toml and of the installed providers, for editors."""
    from tokencache.config._schema import schema as made

    with reported(verbose=verbose):
        _print(json.dumps(made(), indent=2))


def _show(figures: Figures) -> None:
    """Print the figures of one backend at once."""
    _print("\n".join((*figures.lines(), "")))
    sys.stdout.flush()


def _ask_doctor(provider: str) -> str:
    """Return the hint to run the doctor."""
    return f"`tokencache doctor {provider}` tells more"


def _open(backend: str | None, config: str | None) -> TokenCache:
    """Return the cache of these two options."""
    from tokencache.cli._setup import Setup

    return Setup(config, backend).cache()


def _public(source: TokenSource, got: Token) -> dict[str, object]:
    """Return the fields of a token that are not secret."""
    return {
        "provider": source.provider,
        "key": source.key,
        "token_type": got.token_type,
        "scope": got.scope,
        "issued_at": got.issued_at,
        "expires_at": got.expires_at,
    }


def _print(text: str) -> None:
    """Write a result to stdout."""
    sys.stdout.write(text + "\n")


def _print_json(document: dict[str, object]) -> None:
    """Write a result to stdout as JSON: indented for a person, on one line for a program."""
    _print(json.dumps(document, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))
