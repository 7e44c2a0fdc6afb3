"""The end of a command: an exit code and one paragraph on stderr, without traceback and secrets."""

from __future__ import annotations

import logging
import sys
import textwrap
import traceback
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

import typer

from tokencache.errors import (
    BackendConflict,
    BackendNotInstalled,
    BackendUnavailable,
    ConfigurationError,
    DeadlineExceeded,
    ProviderRejected,
    ProviderUnavailable,
    TokenCacheError,
)

if TYPE_CHECKING:
    from collections.abc import Generator


class Exit(IntEnum):
    """The exit codes, as `tokencache --help` lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REJECTED = 3
    UNAVAILABLE = 4
    INTERRUPTED = 130
    BROKEN_PIPE = 141


def code_of(error: TokenCacheError) -> Exit:
    """Return the exit code for this kind of error."""
    match error:
        case ConfigurationError() | BackendNotInstalled() | BackendConflict():
            return Exit.USAGE
        case ProviderRejected():
            return Exit.REJECTED
        case ProviderUnavailable() | BackendUnavailable() | DeadlineExceeded():
            return Exit.UNAVAILABLE
        case _:
            return Exit.FAILED


def complain(message: str) -> None:
    """Write one paragraph to stderr, wrapped if stderr is a terminal."""
    paragraph = f"tokencache: {' '.join(message.split())}"
    if sys.stderr.isatty():
        paragraph = textwrap.fill(paragraph, width=100, break_long_words=False, break_on_hyphens=False)
    sys.stderr.write(paragraph + "\n")


def unwritten(failure: OSError) -> Exit:
    """Return the exit code of a result that could not be written; print the reason unless the reader left."""
    if isinstance(failure, BrokenPipeError):
        return Exit.BROKEN_PIPE
    complain(f"the result could not be written: {failure.strerror}")
    return Exit.FAILED


@contextmanager
def reported(*, verbose: bool) -> Generator[None]:
    """Run a command's body: with ``verbose`` log, and turn an exception into an exit code and one paragraph."""
    try:
        with _logging(verbose=verbose):
            yield
    except TokenCacheError as error:
        complain(str(error))
        raise typer.Exit(code_of(error)) from None
    except KeyboardInterrupt:
        complain("interrupted")
        raise typer.Exit(Exit.INTERRUPTED) from None
    except OSError as error:
        complain(f"the operating system refused: {error.strerror or type(error).__name__}")
        raise typer.Exit(Exit.FAILED) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:  # noqa: BLE001 - users get no traceback
        # A third-party message may hold a secret, so only the exception's type and place are shown (INV-9).
        complain(
            f"this should not have happened: {type(error).__name__}. "
            + ("Please report the frames above." if verbose else "Run it again with --verbose and please report it.")
        )
        if verbose:
            sys.stderr.writelines(traceback.format_tb(error.__traceback__))
        raise typer.Exit(Exit.FAILED) from None


@contextmanager
def _logging(*, verbose: bool) -> Generator[None]:
    """Send all log lines of the library to stderr, or none: :func:`complain` reports each error once."""
    logger = logging.getLogger("tokencache")
    handler: logging.Handler = logging.NullHandler()
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = logger.level
    logger.setLevel(logging.DEBUG if verbose else before)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
