"""The fault matrix: what each test saw, held against docs/reliability.md, or written into it with `--reliability`."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = "| # | fault | backend | what callers saw | provider calls | healed after | test |"

FAULTS = {
    1: "holder dies before, in or after the fetch",
    2: "holder paused beyond its lease",
    3: "holder cancelled or interrupted",
    4: "reply lost after lease or commit was performed",
    5: "store refuses connections",
    6: "store frozen",
    7: "store slow",
    8: "store half-open, cut in mid-reply, one byte at a time",
    9: "store restarts empty",
    10: "lease or record evicted",
    11: "store full",
    12: "store answers with an error",
    13: "store pauses its clients",
    14: "Sentinel failover",
    15: "replication lost at promotion",
    16: "Cluster node dies, slot moves",
    17: "one of several memcached servers is gone",
    18: "wall clock steps, hosts disagree",
    19: "host suspended",
    20: "the store's clock jumps",
    21: "a crowd of waiters, few connections",
    22: "provider fails or answers nonsense",
    23: "odd expiries",
    24: "same token again; new token kills the old",
    25: "500 callers report one token",
    26: "stored bytes are no record of ours",
    27: "fork, threads, closed loops, interpreter exit",
    28: "hostile keys",
    29: "file store: disk full, read-only, removed, planted links",
    30: "client libraries at their minimum versions",
}


@dataclass
class Outcome:
    """What one test of the matrix saw. The test fills it in; it becomes a row of docs/reliability.md."""

    row: int
    backend: str
    test: str
    case: str = ""
    saw: str = ""
    calls: str = ""
    healed: float | None = None

    def record(self, saw: str, *, calls: int | str) -> None:
        """State what callers saw, and how many calls to the provider it took, as counted, or as a range."""
        self.saw, self.calls = saw, str(calls)

    @contextmanager
    def healing(self) -> Iterator[None]:
        """Take the time from the fault's end, at the start of this block, to its end: every caller is served."""
        began = time.monotonic()
        yield
        self.healed = time.monotonic() - began

    @property
    def line(self) -> str:
        """The row of the table, but for the time to heal, which no two runs share."""
        fault = FAULTS[self.row] + (f": {self.case}" if self.case else "")
        return f"| {self.row} | {fault} | {self.backend} | {self.saw} | {self.calls} |"

    @property
    def whole(self) -> str:
        """The row of the table."""
        healed = "" if self.healed is None else f"{self.healed:.1f} s"
        return f"{self.line} {healed} | `{self.test}` |"


SEEN = pytest.StashKey[list[Outcome]]()


@pytest.fixture
def outcome(request: pytest.FixtureRequest) -> Iterator[Outcome]:
    """Return what the test fills in; its mark names the row: `@pytest.mark.fault(6, backend="redis", case="…")`.

    Backend and case may also be set by the test, or by a fixture of it.
    """
    mark = request.node.get_closest_marker("fault")
    assert mark is not None, "a test that uses `outcome` is marked with its row"
    name = f"{Path(request.node.fspath).name}::{request.node.originalname}"
    seen = Outcome(mark.args[0], mark.kwargs.get("backend", ""), name, case=mark.kwargs.get("case", ""))
    yield seen
    if not seen.saw:
        return  # failed or skipped before its end
    assert seen.backend
    if request.config.getoption("reliability"):
        request.config.stash.setdefault(SEEN, []).append(seen)
        return
    known = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    assert seen.line in known, f"docs/reliability.md does not say this; `make reliability` writes it:\n{seen.line}"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the table, if that was asked for and every test passed; lines of files that did not run stay."""
    seen = session.config.stash.get(SEEN, [])
    if not seen or exitstatus:
        return
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition("<!-- table -->\n")
    table, _, after = rest.partition("<!-- end of table -->")
    ran = {row.test.partition("::")[0] for row in seen}
    lines = [line for line in table.splitlines()[2:] if line.rpartition("| `")[2].partition("::")[0] not in ran]
    lines += [row.whole for row in seen]
    lines.sort(key=lambda line: (int(line.split("|")[1]), line))
    table = "\n".join([HEAD, "|---|---|---|---|---|---|---|", *lines])
    DOCUMENT.write_text(f"{before}<!-- table -->\n{table}\n<!-- end of table -->{after}", encoding="utf-8")
