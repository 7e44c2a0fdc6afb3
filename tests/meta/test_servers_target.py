"""`make servers`: what it installs for the live tests and how, tested with fake system programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REAL = ("env", "install", "rm", "touch", "true")
APT = """#!/bin/sh
echo "$DEBIAN_FRONTEND $@ | policy $("{policy}" redis-server start; echo $?)" >> "{bin}/asked"
case "$*" in *update*) touch "{bin}/updated"; exit 0 ;; esac
[ -e "{bin}/updated" ] || {{ echo no lists >&2; exit 100; }}
for name in "$@"; do :; done
[ -e "{bin}/empty" ] || printf '#!/bin/sh\\n' | install -m 755 /dev/stdin "{bin}/$name"
"""


@dataclass(frozen=True)
class System:
    """A fake system: a folder of programs, and the file of the policy for services."""

    bin: Path
    policy: Path

    def put(self, name: str, script: str) -> None:
        """Add a program."""
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def asked(self) -> list[str]:
        """Return apt-get's requests, and the policy at that time."""
        asked = self.bin / "asked"
        return asked.read_text().splitlines() if asked.exists() else []

    def make(self) -> subprocess.CompletedProcess[str]:
        """Run `make servers` on this system."""
        make = shutil.which("make")
        assert make is not None
        return subprocess.run(
            [make, "servers", f"POLICY={self.policy}"],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={"PATH": str(self.bin), "LC_ALL": os.environ.get("LC_ALL", "C")},
        )


@pytest.fixture
def system(tmp_path: Path) -> System:
    """Yield a system with apt-get for root, with redis-server and without memcached."""
    system = System(tmp_path / "bin", tmp_path / "policy-rc.d")
    system.bin.mkdir()
    for name in REAL:
        found = shutil.which(name)
        assert found is not None
        (system.bin / name).symlink_to(found)
    system.put("id", "#!/bin/sh\necho 0\n")
    system.put("redis-server", "#!/bin/sh\n")
    system.put("apt-get", APT.format(bin=system.bin, policy=system.policy))
    return system


def test_with_both_programs_no_request_is_made(system: System) -> None:
    """With both programs installed, the target prints nothing and runs no installer."""
    system.put("memcached", "#!/bin/sh\n")
    ran = system.make()
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert not system.asked()


def test_only_the_missing_program_is_installed_and_no_service_starts(system: System) -> None:
    """The lists are renewed once, and a policy against starting services exists only during the installation."""
    ran = system.make()
    assert (ran.returncode, ran.stderr) == (0, "")
    first, update, second = system.asked()
    assert first == second
    assert " update " in update
    assert second.startswith("noninteractive ")
    assert second.endswith("--no-upgrade --no-remove memcached | policy 101")
    assert not system.policy.exists()


@pytest.mark.parametrize(("answer", "installed"), [(101, True), (0, False), (104, False)])
def test_an_existing_policy_is_kept(system: System, answer: int, installed: bool) -> None:
    """Another policy stays unchanged; if it lets services start, no program is installed."""
    script = f"#!/bin/sh\nexit {answer}\n"
    system.policy.write_text(script)
    system.policy.chmod(0o755)
    ran = system.make()
    assert ran.returncode == 0
    assert bool(system.asked()) == installed
    assert ("Not installed: memcached." in ran.stderr) != installed
    assert system.policy.read_text() == script


def test_a_plain_user_installs_through_sudo(system: System) -> None:
    """Without root, sudo is used if it needs no password."""
    system.put("id", "#!/bin/sh\necho 1000\n")
    system.put("sudo", f'#!/bin/sh\nprintf "%s\\n" "$*" >> "{system.bin}/sudo-asked"\nshift\nexec "$@"\n')
    ran = system.make()
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (system.bin / "memcached").exists()
    asked = (system.bin / "sudo-asked").read_text().splitlines()
    assert asked[0] == "-n true"
    assert all(line.startswith("-n ") for line in asked)
    assert asked[-1] == f"-n env rm -f {system.policy}"


@pytest.mark.parametrize("lacking", ["root", "apt-get", "package"])
def test_a_failed_installation_prints_the_remedy(system: System, lacking: str) -> None:
    """Without the right, the program or the package, one paragraph says what to install, and the tests go on."""
    if lacking == "root":
        system.put("id", "#!/bin/sh\necho 1000\n")
    elif lacking == "apt-get":
        (system.bin / "apt-get").unlink()
    else:
        (system.bin / "empty").touch()
    ran = system.make()
    assert ran.returncode == 0
    assert ran.stderr.startswith("Not installed: memcached. ")
    assert "sudo apt-get install memcached;" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not system.policy.exists()
