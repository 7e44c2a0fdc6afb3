"""The report states the build of Python on which its figures were measured: with or without the GIL."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("free", "locked", "said"),
    [
        (0, lambda: True, "with the global lock"),
        (None, None, "with the global lock"),
        (1, lambda: False, "free-threaded build, no global lock"),
        (1, lambda: True, "free-threaded build, but an extension turned the global lock on"),
    ],
)
def test_the_build_is_in_the_reports_header(
    monkeypatch: pytest.MonkeyPatch, free: int | None, locked: Callable[[], bool] | None, said: str
) -> None:
    """A build is named by its kind and by its lock, since an extension may turn the lock on again."""
    from suite import report
    from suite.results import Results, machine

    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": free}.get)
    monkeypatch.setattr(sys, "_is_gil_enabled", locked, raising=False)
    if locked is None:
        monkeypatch.delattr(sys, "_is_gil_enabled", raising=False)
    assert machine()["threads"] == said
    assert f"threads: {said}" in report.machine(Results(quick=True, machine=machine()))


@pytest.mark.parametrize(
    ("free", "found", "said"),
    [
        (0, None, "not available on this machine"),
        (0, "/usr/bin/python3.14t", "`make bench PYTHON=python3.14t`"),
        (1, None, "this run is on it"),
    ],
)
def test_a_free_threaded_python_is_measured_or_reported_missing(
    monkeypatch: pytest.MonkeyPatch, free: int, found: str | None, said: str
) -> None:
    """The scenario always reports it: this run is on it, it is installed, or it is not available."""
    from suite.footprint import free_threaded
    from suite.plan import Plan

    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": free}.get)
    monkeypatch.setattr(shutil, "which", lambda _name: found)
    (row,) = free_threaded(Plan(quick=True))
    assert said in row.note


def test_the_threads_scenario_states_its_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of the scenario with many threads states its build."""
    from suite import cached
    from suite.plan import Plan

    monkeypatch.setattr(cached, "CROWDS", (1, 2))
    monkeypatch.setattr(cached, "_together", lambda *_: 1e-7)
    monkeypatch.setattr(cached, "build", lambda: "a build")
    assert {row.note for row in cached.crowd(Plan(quick=True))} == {"a build"}
