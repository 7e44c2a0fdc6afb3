"""The check of a configuration: each error and warning, with its place and remedy."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokencache.config import Configuration, Remark
from tokencache.config._file import find, missing, read_file
from tokencache.config._place import Mistake

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class ConfigReport:
    """The remarks on a configuration; ``file`` is ``None`` if it comes only from variables."""

    file: str | None
    providers: Sequence[str] = ()
    remarks: list[Remark] = field(default_factory=list[Remark])

    @property
    def good(self) -> bool:
        """Whether there are no errors; warnings do not count."""
        return not any(remark.severity == "error" for remark in self.remarks)

    def as_dict(self) -> dict[str, object]:
        """Return plain values, fit for JSON."""
        findings = [remark.as_dict() for remark in self.remarks]
        return {"file": self.file, "ok": self.good, "providers": list(self.providers), "findings": findings}

    def summary(self) -> str:
        """Return one line with the totals."""
        errors = sum(remark.severity == "error" for remark in self.remarks)
        warnings = len(self.remarks) - errors
        names = ", ".join(self.providers) or "none"
        return f"{self.file or 'variables'}: {errors} errors, {warnings} warnings; providers: {names}"


def check(path: str | None) -> ConfigReport:
    """Return the remarks on a configuration and the variables over it; nothing goes over a network.

    Without a path the file is found as by every other command. Raises ``ConfigurationError`` if neither a file nor
    variables exist.
    """
    shown = path
    found: str | os.PathLike[str] | None = path
    try:
        found = path or find(os.environ)
        shown = None if found is None else str(found)
        plan = Configuration.over(None if found is None else read_file(found), os.environ)
    except Mistake as mistake:
        place = mistake.place
        return ConfigReport(shown, (), [Remark(place.file, place.key, "error", mistake.problem, mistake.remedy)])
    report = ConfigReport(shown, plan.names, list(plan.remarks()))
    if found is None and not plan.names and not report.remarks:
        raise missing()
    return report
