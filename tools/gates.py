"""Runs the quality gates one after the other, and says at the end what took the time.

Without a name it runs all of them, the quick ones first, and stops at the first that fails. What a gate started it also
stops, whether the gate passed, failed or was interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
LAB = (PYTHON, "lab/lab.py")
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}",
    "ANSIBLE_NOCOLOR": "1",
    "PY_COLORS": "0",
    "NO_COLOR": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "RUFF_CACHE_DIR": str(ROOT / ".cache" / "ruff"),
}
#: Seconds after which a single command counts as hung.
LONGEST = 60 * 60
#: Seconds that a command has to end after it was told to.
GRACE = 60
STARTED = time.monotonic()
#: Molecule's scenario of the whole data tier: a small lab, so it is soak's.
WHOLE = "default"
#: How pass_through says that a gate failed.
SLIP = re.compile("=== .* FAILED: ")
#: Set for the process that runs beside another: Docker and the folder .ansible are that one's to clean up.
BESIDE = "SHANNON_GATES_BESIDE"


@dataclass
class Outcome:
    """What a gate did: its name, whether it passed and if not why, its seconds, and those of its steps."""

    name: str
    passed: bool = False
    seconds: float = 0.0
    steps: list[tuple[str, float]] = field(default_factory=list)
    why: list[str] = field(default_factory=list)


class Failed(Exception):
    """A command of a gate failed."""


def run(*command: str | Path, cwd: Path = ROOT, capture: bool = False, **extra: str) -> str:
    """Run one command of a gate, its output going straight to the terminal; returns it if it was to be captured.

    It gets a process group of its own, so that nothing of it outlives a gate that was interrupted or took too long.
    """
    words = [str(word) for word in command]
    print(f"$ {shlex.join(words)}", flush=True)
    started = time.monotonic()
    said = ""
    with subprocess.Popen(
        words,
        cwd=cwd,
        env={**ENVIRONMENT, **extra},
        start_new_session=True,
        stdout=subprocess.PIPE if capture else None,
        text=True,
    ) as process:
        try:
            said = process.communicate(timeout=LONGEST)[0] or ""
        except subprocess.TimeoutExpired as exc:
            raise Failed(f"{words[0]} took longer than {LONGEST // 60} minutes") from exc
        finally:
            end(process)
    print(f"{said}  ({time.monotonic() - started:.1f} s)", flush=True)
    if process.returncode:
        raise Failed(f"{shlex.join(words)} ended with {process.returncode}")
    return said


def end(process: subprocess.Popen[str]) -> None:
    """See to it that a command that still runs, and all that it started, end."""
    if process.poll() is not None:
        return
    # First as Ctrl-C does: pytest and Ansible clean up behind themselves.
    for number, patience in ((signal.SIGINT, GRACE), (signal.SIGTERM, GRACE / 4), (signal.SIGKILL, GRACE)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        if is_gone(process.pid, 2):
            return


def is_gone(group: int, patience: float) -> bool:
    """Whether a process group has no process left, or soon has none."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def lint(_outcome: Outcome) -> None:
    """Style and correctness of Python and of Ansible content."""
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")
    run("yamllint", "--strict", ".")
    run("ansible-lint", "--offline", "--strict", "--profile", "production")


def unit(_outcome: Outcome) -> None:
    """Unit tests."""
    run(PYTHON, "-m", "pytest", "-q", "-p", "no:pytest11.testinfra", "--durations=5", "tests/unit")


def sanity(_outcome: Outcome) -> None:
    """ansible-test sanity, on a staged copy, since it refuses a collection that it reaches through a link."""
    run(ROOT / "tools" / "sanity.sh")


def package(_outcome: Outcome) -> None:
    """The collection builds from what git knows, installs elsewhere, and works there under its name."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        run("ansible-galaxy", "collection", "build", "--force", "--output-path", scratch)
        archive = next(place.glob("shannon-resilience-*.tar.gz"))
        litter = in_archive(archive) - known_to_git()
        if litter:
            raise Failed(f"the archive holds what git does not know, see build_ignore in galaxy.yml: {sorted(litter)}")
        # The environment has the checkout as an installed collection already.
        run("ansible-galaxy", "collection", "install", "--force", "--no-deps", "--offline", archive, "-p", scratch)
        there = {
            "ANSIBLE_COLLECTIONS_PATH": scratch,
            "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
            "PAGER": "cat",
        }
        installed = place / "ansible_collections" / "shannon" / "resilience"
        for inventory in ("lab", "active_passive"):
            path = installed / "inventories" / inventory
            said = run("ansible-playbook", "-i", path, "--syntax-check", "shannon.resilience.site", cwd=place,
                       capture=True, **there)  # fmt: skip
            if f"playbook: {installed}/playbooks/site.yml" not in said:
                raise Failed("shannon.resilience.site is not the playbook that was installed")
        run("ansible-doc", "--list", "shannon.resilience", cwd=place, **there)
        run("ansible-doc", "-t", "role", "--list", "shannon.resilience", cwd=place, **there)


def in_archive(archive: Path) -> set[str]:
    """The files of a collection's archive, but for those that the build adds."""
    with tarfile.open(archive) as tar:
        return {member.name for member in tar if member.isfile()} - {"FILES.json", "MANIFEST.json"}


def known_to_git() -> set[str]:
    """The files of the checkout that git has, or would take."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    return set(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"))


def docs_check(_outcome: Outcome) -> None:
    """docs/roles says what the roles' argument specs say."""
    run(PYTHON, "tools/role_docs.py", "--check")


def molecule(outcome: Outcome) -> None:
    """Every role's scenario on plain images."""
    every = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))
    on_molecule(outcome, os.environ.get("SCENARIOS", "").split() or [name for name in every if name != WHOLE], every)


def on_molecule(outcome: Outcome, scenarios: t.Sequence[str], every: t.Sequence[str]) -> None:
    """Run scenarios one after the other; one that fails does not hide what the others say."""
    if unknown := set(scenarios) - set(every):
        raise Failed(f"there is no scenario {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    run(*LAB, "image")
    run(*LAB, "qdrant")
    failures: list[str] = []
    for number, scenario in enumerate(scenarios, start=1):
        print(f"\n--- scenario {number} of {len(scenarios)}: {scenario}", flush=True)
        started = time.monotonic()
        try:
            run("molecule", "test", "--no-command-borders", "-s", scenario)
        except BaseException as exc:
            # It does so itself, but not when it was interrupted.
            with contextlib.suppress(Failed):
                run("molecule", "destroy", "--no-command-borders", "-s", scenario)
            if not isinstance(exc, Failed):
                raise
            print(f"--- scenario {scenario} FAILED: {exc}", flush=True)
            failures.append(scenario)
        finally:
            outcome.steps.append((f"molecule {scenario}", time.monotonic() - started))
    if failures:
        raise Failed(f"{len(failures)} of {len(scenarios)} scenarios failed: {', '.join(failures)}")


def e2e(_outcome: Outcome) -> None:
    """The whole thing on the lab: deploy, security, bad input, faults. SHANNON_E2E_KEEP=1 keeps the lab."""
    on_the_lab("-x", "-m", "not soak")


def soak(outcome: Outcome) -> None:
    """What takes long: the data tier on plain images; on the lab odd faults, a lost registry, restores."""
    on_molecule(outcome, [WHOLE], [WHOLE])
    on_the_lab("-m", "soak")


def on_the_lab(*options: str) -> None:
    """Run end-to-end tests, and bring the lab down behind them."""
    try:
        run(PYTHON, "-m", "pytest", "-v", "-p", "no:pytest11.testinfra", "--durations=15", *options, "tests/e2e")
    finally:
        if os.environ.get("SHANNON_E2E_KEEP") != "1":
            run(*LAB, "down")


@contextlib.contextmanager
def docker_as_found() -> t.Iterator[None]:
    """Stop the Docker daemon that the lab's tool started meanwhile, if nothing runs in it. No other is ever stopped."""
    sys.path.insert(0, str(ROOT / "lab"))
    from shannon_lab import engine
    from shannon_lab.command import LabError

    before = engine.own_daemon()
    try:
        yield
    finally:
        if BESIDE not in os.environ and engine.own_daemon() != before and os.environ.get("SHANNON_E2E_KEEP") != "1":
            try:
                engine.stop_own_daemon()
            except LabError as exc:
                print(exc, flush=True)


#: The quick ones first, so that a slip is found in seconds.
GATES: dict[str, t.Callable[[Outcome], None]] = {
    "lint": lint,
    "unit": unit,
    "docs-check": docs_check,
    "package": package,
    "sanity": sanity,
    "molecule": molecule,
    "e2e": e2e,
}
#: Those that need one core and no Docker.
QUICK = ("lint", "unit", "docs-check", "package", "sanity")
#: Outside of make test, since they take longer than CI has.
EXTRA: dict[str, t.Callable[[Outcome], None]] = {"soak": soak}


def pass_through(outcome: Outcome) -> None:
    """Run one gate, and note how it went."""
    name = outcome.name
    print(f"\n=== {name}: {({**GATES, **EXTRA}[name].__doc__ or '').strip()}", flush=True)
    started = time.monotonic()
    try:
        {**GATES, **EXTRA}[name](outcome)
        outcome.passed = True
    except Failed as exc:
        outcome.why.append(str(exc))
        print(f"=== {name} FAILED: {exc}", flush=True)
    except KeyboardInterrupt:
        outcome.why.append("it was interrupted")
        print(f"=== {name} FAILED: it was interrupted", flush=True)
        raise
    finally:
        outcome.seconds = time.monotonic() - started


@contextlib.contextmanager
def quick_ones_beside(outcomes: list[Outcome]) -> t.Iterator[None]:
    """Run the quick gates beside what the block does, at a lower priority; at its end their output is printed whole."""
    outcome = Outcome("quick gates")
    outcomes.append(outcome)
    print(f"=== {', '.join(QUICK)} run beside molecule; what they say comes after it", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        words = ["nice", "-n", "10", PYTHON, __file__, "--keep-going", *QUICK]
        environment = {**os.environ, BESIDE: "1"}
        with subprocess.Popen(
            words, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        ) as process:
            try:
                yield
                process.wait(LONGEST)
            except subprocess.TimeoutExpired:
                print(f"the quick gates took longer than {LONGEST // 60} minutes", flush=True)
            finally:
                end(process)
                outcome.seconds = time.monotonic() - started
                outcome.passed = process.returncode == 0
                said.seek(0)
                text = said.read()
                # Once more at the end: of a long log, often only the end is kept.
                outcome.why += [line.removeprefix("=== ") for line in text.splitlines() if SLIP.match(line)]
                print(text, flush=True)


def report(outcomes: t.Sequence[Outcome]) -> int:
    """Print what took how long and how many gates passed; returns how many failed."""
    print("\n=== what took the time")
    for outcome in outcomes:
        print(f"{outcome.seconds:8.1f} s  {outcome.name:24} {'passed' if outcome.passed else 'FAILED'}")
        for step, seconds in outcome.steps:
            print(f"{seconds:12.1f} s  {step}")
        for reason in outcome.why:
            print(f"{'':12}{reason}")
    print(f"{time.monotonic() - STARTED:8.1f} s  in all")
    failed = sum(not outcome.passed for outcome in outcomes)
    print(f"{len(outcomes) - failed} passed, {failed} failed", flush=True)
    return failed


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gates", nargs="*", metavar="GATE", help=f"of {', '.join([*GATES, *EXTRA])}")
    parser.add_argument("--keep-going", action="store_true", help="run the other gates after one has failed")
    parser.add_argument("--beside", action="store_true", help="run the gates that need no Docker beside molecule")
    args = parser.parse_args()
    unknown = [name for name in args.gates if name not in {**GATES, **EXTRA}]
    if unknown:
        parser.error(f"there is no gate {', '.join(unknown)}; there are {', '.join(GATES)}")

    # What stops a CI job ends as Ctrl-C does: with everything brought down. In a shell's background job SIGINT would be
    # ignored, here and by all that is started from here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    outcomes: list[Outcome] = []
    try:
        with docker_as_found():
            wanted = args.gates or list(GATES)
            if args.beside and set(wanted) >= {*QUICK, "molecule"}:
                wanted = [name for name in wanted if name not in (*QUICK, "molecule")]
                with quick_ones_beside(outcomes):
                    outcomes.append(Outcome("molecule"))
                    pass_through(outcomes[-1])
            for name in wanted:
                if not args.keep_going and not all(outcome.passed for outcome in outcomes):
                    break
                outcomes.append(Outcome(name))
                pass_through(outcomes[-1])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    finally:
        if BESIDE not in os.environ:
            shutil.rmtree(ROOT / ".ansible", ignore_errors=True)
    return 1 if report(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
