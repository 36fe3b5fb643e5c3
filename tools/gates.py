#!/usr/bin/env python3
"""Runs the quality gates one after the other, and says at the end what took the time.

tools/gates.py [--keep-going] [GATE ...]        (all of them without a name)
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
BIN = Path(PYTHON).parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "ANSIBLE_NOCOLOR": "1",
    "PY_COLORS": "0",
    "NO_COLOR": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
#: Seconds after which a single command counts as hung.
LONGEST = 45 * 60


@dataclass
class Outcome:
    """What a gate did: its name, whether it passed, and its seconds."""

    name: str
    passed: bool
    seconds: float


class Failed(Exception):
    """A command of a gate failed."""


def run(*command: str | Path, cwd: Path = ROOT, **extra: str) -> None:
    """Run one command of a gate, its output going straight to the terminal."""
    words = [str(word) for word in command]
    print(f"$ {' '.join(words)}", flush=True)
    try:
        code = subprocess.run(words, cwd=cwd, env={**ENVIRONMENT, **extra}, check=False, timeout=LONGEST).returncode
    except subprocess.TimeoutExpired as exc:
        raise Failed(f"{words[0]} took longer than {LONGEST // 60} minutes") from exc
    if code:
        raise Failed(f"{words[0]} ended with {code}")


def lint() -> None:
    """Style and correctness of Python and of Ansible content."""
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")
    run("yamllint", "--strict", ".")
    run("ansible-lint", "--offline", "--strict", "--profile", "production")


def unit() -> None:
    """Unit tests."""
    run(PYTHON, "-m", "pytest", "-q", "-p", "no:pytest11.testinfra", "tests/unit")


def sanity() -> None:
    """ansible-test sanity, on a staged copy, since it refuses a collection that it reaches through a link."""
    run(ROOT / "tools" / "sanity.sh")


def package() -> None:
    """The collection builds, installs elsewhere, and works there under its name."""
    with tempfile.TemporaryDirectory() as scratch:
        run("ansible-galaxy", "collection", "build", "--force", "--output-path", scratch)
        archive = next(Path(scratch).glob("shannon-resilience-*.tar.gz"))
        run("ansible-galaxy", "collection", "install", "--no-deps", "--offline", archive, "-p", scratch)
        inventory = Path(scratch) / "ansible_collections/shannon/resilience/inventories/active_passive"
        run("ansible-playbook", "-i", inventory, "--syntax-check", "shannon.resilience.site",
            cwd=Path(scratch), ANSIBLE_COLLECTIONS_PATH=scratch)  # fmt: skip
        run("ansible-doc", "-t", "module", "shannon.resilience.cell_info", cwd=Path(scratch),
            ANSIBLE_COLLECTIONS_PATH=scratch, PAGER="cat")  # fmt: skip


def docs_check() -> None:
    """docs/roles says what the roles' argument specs say."""
    run(PYTHON, "tools/role_docs.py", "--check")


def molecule() -> None:
    """Every role's scenario, and the whole data tier, on plain images."""
    run(PYTHON, "lab/lab.py", "image")
    run(PYTHON, "lab/lab.py", "qdrant")
    scenarios = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))
    for number, scenario in enumerate(scenarios, start=1):
        print(f"\n--- scenario {number} of {len(scenarios)}: {scenario}", flush=True)
        started = time.monotonic()
        run("molecule", "test", "--no-command-borders", "-s", scenario)
        print(f"--- {scenario}: {time.monotonic() - started:.0f} s", flush=True)


def e2e() -> None:
    """The whole thing on the lab: deploy, security, bad input, faults."""
    try:
        run(PYTHON, "-m", "pytest", "-v", "-x", "-p", "no:pytest11.testinfra", "--durations=15", "tests/e2e")
    finally:
        if os.environ.get("SHANNON_E2E_KEEP") != "1":
            run(PYTHON, "lab/lab.py", "down")


#: The quick ones first, so that a slip is found in seconds.
GATES: dict[str, t.Callable[[], None]] = {
    "lint": lint,
    "unit": unit,
    "docs-check": docs_check,
    "package": package,
    "sanity": sanity,
    "molecule": molecule,
    "e2e": e2e,
}


def pass_through(name: str) -> Outcome:
    """Run one gate."""
    print(f"\n=== {name}: {(GATES[name].__doc__ or '').strip()}", flush=True)
    started = time.monotonic()
    try:
        GATES[name]()
        passed = True
    except Failed as exc:
        print(f"=== {name} FAILED: {exc}", flush=True)
        passed = False
    return Outcome(name, passed, time.monotonic() - started)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gates", nargs="*", metavar="GATE", help=f"of {', '.join(GATES)}")
    parser.add_argument("--keep-going", action="store_true", help="run the other gates after one has failed")
    args = parser.parse_args()
    unknown = [name for name in args.gates if name not in GATES]
    if unknown:
        parser.error(f"there is no gate {', '.join(unknown)}; there are {', '.join(GATES)}")
    outcomes: list[Outcome] = []
    for name in args.gates or GATES:
        outcomes.append(pass_through(name))
        if not outcomes[-1].passed and not args.keep_going:
            break
    shutil.rmtree(ROOT / ".ansible", ignore_errors=True)
    print("\n=== what took the time")
    for outcome in sorted(outcomes, key=lambda one: -one.seconds):
        print(f"{outcome.seconds:8.0f} s  {outcome.name:12} {'passed' if outcome.passed else 'FAILED'}")
    failed = sum(not outcome.passed for outcome in outcomes)
    print(f"{len(outcomes) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
