"""One lab for all end-to-end tests, deployed once by the same site.yml as production.

SHANNON_E2E_KEEP=1 leaves the lab up at the end, and takes an already deployed one as it is.
"""

from __future__ import annotations

import os
import sys
import time
import typing as t
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import moves

import lab

KEEP = os.environ.get("SHANNON_E2E_KEEP") == "1"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once why a test failed: the suite takes half an hour, and may be killed before its end."""
    if report.failed:
        print(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext[-4000:]}", flush=True)


@pytest.fixture(scope="session")
def deployed(request: pytest.FixtureRequest) -> t.Iterator[dict[str, float]]:
    """The lab, deployed; yields what took how long, in seconds."""
    took: dict[str, float] = {}
    if not KEEP:
        lab.run(sys.executable, "lab/lab.py", "down", timeout=300)
    started = time.monotonic()
    lab.run(sys.executable, "lab/lab.py", "up", timeout=900)
    took["lab"] = time.monotonic() - started
    if not KEEP or not (lab.INVENTORY / ".secrets" / "secrets.yml").exists():
        if request.config.option.markexpr == "soak":
            # On an empty system: must say what it would do, and neither fail nor leave anything behind.
            lab.playbook("site", "--check", timeout=600)
            took["check on an empty lab"] = time.monotonic() - started - took["lab"]
            assert not (lab.INVENTORY / ".secrets").exists(), "--check left secrets on the controller"
        started = time.monotonic()
        lab.playbook("site", timeout=1800)
        took["site.yml"] = time.monotonic() - started
    print("\n" + "\n".join(f"{what}: {seconds:.0f} s" for what, seconds in took.items()))
    yield took
    if not KEEP:
        lab.run(sys.executable, "lab/lab.py", "down", timeout=300)


@pytest.fixture
def healthy(deployed: dict[str, float]) -> dict[str, t.Any]:
    """The status of a lab in which nothing is amiss; waits for what the test before broke to come back by itself."""
    last: dict[str, t.Any] = {}

    def is_healthy() -> bool:
        last.update(lab.status())
        return all(cell["healthy"] for cell in last["cells"].values())

    lab.wait_for(is_healthy, "a healthy lab", 120, lambda: str({n: c["problems"] for n, c in last["cells"].items()}))
    return last


@pytest.fixture
def at_home(deployed: dict[str, float]) -> t.Iterator[None]:
    """The cell at home in region a, before and after."""
    moves.bring_home()
    yield
    moves.bring_home()
