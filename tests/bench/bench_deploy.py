"""How long the verbs take on the lab: site.yml on a fresh lab, site.yml again, status.yml.

    make bench        (or: .venv/bin/python tests/bench/bench_deploy.py [--keep] [--runs N])

It prints its figures beside the targets and judges nothing: the machines are noisy.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import lab

#: Seconds on 2 cores, from the issue that asked for the data tier.
TARGETS = {"site.yml on a fresh lab": 300, "site.yml again": 60, "status.yml": 3, "status.yml, region b dead": 5}


def timed(verb: str, *options: str) -> tuple[float, str]:
    """Seconds that a playbook took, and what it printed."""
    started = time.monotonic()
    done = lab.playbook(verb, *options, timeout=1800)
    return time.monotonic() - started, done.stdout


def slowest_tasks(output: str, count: int = 12) -> list[str]:
    """The lines of profile_tasks that say where the time went."""
    rows = re.findall(r"^(.+?) -+ +([0-9.]+)s$", output, flags=re.MULTILINE)
    return [f"    {float(seconds):6.1f} s  {name.strip()[:80]}" for name, seconds in rows[:count]]


def report(name: str, seconds: list[float], remark: str = "") -> None:
    """One line of figures."""
    line = f"{name:28} median {statistics.median(seconds):6.1f} s  worst {max(seconds):6.1f} s  runs {len(seconds)}"
    print(f"{line}  target {TARGETS[name]} s  {remark}", flush=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="take the lab as it is: no fresh deploy, and leave it up")
    parser.add_argument("--runs", type=int, default=5, help="how often status.yml is run (default 5)")
    parser.add_argument("--leave-up", action="store_true", help="deploy anew, and leave the lab up")
    args = parser.parse_args()
    os.environ["ANSIBLE_CALLBACKS_ENABLED"] = "ansible.posix.profile_tasks"
    if not args.keep:
        lab.run(sys.executable, "lab/lab.py", "down", timeout=300)
        lab.run(sys.executable, "lab/lab.py", "up", timeout=900)
        seconds, output = timed("site")
        report("site.yml on a fresh lab", [seconds])
        print("\n".join(slowest_tasks(output)))
    seconds, output = timed("site")
    changed = sum(counts["changed"] for counts in lab.recap(output).values())
    report("site.yml again", [seconds], f"changed={changed}")
    print("\n".join(slowest_tasks(output)))
    report("status.yml", [timed("status")[0] for _run in range(args.runs)])
    if not args.keep:
        dead = [lab.Host(name) for name in lab.DEFINITION["hosts"] if name.startswith("b")]
        for host in dead:
            host.kill()
        report("status.yml, region b dead", [timed("status")[0] for _run in range(args.runs)])
        if args.leave_up:
            for host in dead:
                host.start()
        else:
            lab.run(sys.executable, "lab/lab.py", "down", timeout=300)
    return 0


if __name__ == "__main__":
    sys.exit(main())
