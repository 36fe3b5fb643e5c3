"""Moves of the cell between regions on the lab, with a client through the edge: what they cost, run after run.

    tests/bench/bench_moves.py [--runs 10] [--rate 2] [--only failover switchover automatic] [--json FILE]

It takes the lab as it is: deployed, healthy, and doing nothing else. In each run a client submits tasks the whole time,
two each second unless told otherwise: seven hosts on two slow cores take little more.

failover    region a dies as a whole, and once its lease has ended failover.yml runs: from the start of ansible-playbook
            to the first task that is taken through the edge. Afterwards region a comes back, and the cell goes home.
switchover  switchover.yml to the other region: the longest time that any submit waited, how many had to be sent again,
            and how many were lost (which must be none).
automatic   region a dies, and nobody does anything: from its death to the moment in which region b serves, and to the
            first task. Only where region_failover is automatic for the bench's time, which it sees to.

Every acknowledged task must be there exactly once in the end, or be in the loss report. The figures are printed beside
the issue's targets, each phase with them. Nothing is judged: the seven hosts share the machine's two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import typing as t
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import moves
from shannon_api import Load

import lab

#: Seconds, from the issue that asked for the moves: name to (figure, target).
TARGETS = {
    "failover": {"first task": 8.0},
    "switchover": {"longest wait": 4.0, "sent again": 0.0, "lost": 0.0},
    "automatic": {"serves": 13.0},
}
Figures = dict[str, float]


def lease_gone() -> bool:
    """Whether nobody holds the cell's lease."""
    return not moves.registry("w1", "get", "/shannon/leases/main")


def split(found: t.Mapping[str, t.Any]) -> Figures:
    """Seconds of each phase of a move."""
    return {f"  {one['name']}": one["end"] - one["begin"] for one in found["phases"]}


def failover(rate: float) -> Figures:
    """Region a dies, and an operator leaves it."""
    with Load(rate=rate) as load:
        moves.kill("a")
        died = time.time()
        try:
            lab.wait_for(lease_gone, "the end of region a's lease", 30, interval=0.2)
            began = time.time()
            found = moves.move("failover", "b")
            load.wait_for(6)
            first = min(one.at for one in load.acknowledged if one.at > died + 1)
        finally:
            moves.start("a")
            back = time.time()
        moves.wait_until_whole()
        whole = time.time() - back
        lost = moves.account_for(load, "a", moves.record()["epoch"])
        load.check()
    return {
        "first task": first - began, "playbook": found["took"], "lost and reported": float(lost),
        "old home whole again": whole, **split(found),
    }  # fmt: skip


def switchover(target: str, rate: float) -> Figures:
    """The cell goes to a region, in order."""
    with Load(rate=rate) as load:
        found = moves.move("switchover", target)
        load.wait_for(8)
        load.check()
    figures = {
        "longest wait": load.longest_wait(), "sent again": float(load.repeated),
        "lost": float(found.get("rpo", {}).get("bytes", -1)), "playbook": found["took"], **split(found),
    }  # fmt: skip
    moves.wait_until_whole()
    return figures


def automatic(rate: float) -> Figures:
    """Region a dies, and nobody does anything."""
    with Load(rate=rate) as load:
        moves.kill("a")
        died = time.time()
        try:
            moves.wait_for_home("b", 60)
            serves = time.time() - died
            load.wait_for(6)
            first = min(one.at for one in load.acknowledged if one.at > died + 1) - died
        finally:
            moves.start("a")
        moves.wait_until_whole()
        lost = moves.account_for(load, "a", moves.record()["epoch"])
        load.check()
    return {"serves": serves, "first task": first, "lost and reported": float(lost)}


def say_failover(word: str) -> None:
    """Set region_failover for all agents."""
    lab.playbook("site", "--tags", "region_agent", "-e", f"region_failover={word}")
    moves.wait_until_whole()


def report(kind: str, runs: t.Sequence[Figures]) -> None:
    """Median, worst and target of each figure."""
    print(f"\n{kind}: {len(runs)} runs")
    names = list(dict.fromkeys(name for run in runs for name in run))
    for name in names:
        seen = [run[name] for run in runs if name in run]
        target = TARGETS[kind].get(name)
        beside = "" if target is None else f"  target {target:g}"
        print(f"  {name:22} median {statistics.median(seen):7.2f}  worst {max(seen):7.2f}{beside}", flush=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="of each kind (default 10)")
    parser.add_argument("--rate", type=float, default=2.0, help="tasks that the client submits each second (default 2)")
    parser.add_argument("--only", nargs="+", choices=tuple(TARGETS), default=list(TARGETS), help="these kinds only")
    parser.add_argument("--json", metavar="FILE", help="write the figures of all runs there, too")
    args = parser.parse_args()
    moves.bring_home()
    every: dict[str, list[Figures]] = {kind: [] for kind in args.only}
    if "switchover" in every:
        for number in range(args.runs):
            every["switchover"].append(switchover("ba"[number % 2], args.rate))
            print(f"switchover {number + 1}: {every['switchover'][-1]}", flush=True)
        moves.bring_home()
    if "failover" in every:
        for number in range(args.runs):
            every["failover"].append(failover(args.rate))
            print(f"failover {number + 1}: {every['failover'][-1]}", flush=True)
            moves.bring_home()
    if "automatic" in every:
        say_failover("automatic")
        try:
            for number in range(args.runs):
                every["automatic"].append(automatic(args.rate))
                print(f"automatic {number + 1}: {every['automatic'][-1]}", flush=True)
                moves.bring_home()
        finally:
            say_failover("manual")
    for kind, runs in every.items():
        report(kind, runs)
    if args.json:
        Path(args.json).write_text(json.dumps(every, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
