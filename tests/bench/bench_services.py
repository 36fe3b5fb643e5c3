"""The services on the lab, through the edge: submits a second, how long tasks take, and how much memory it costs.

    tests/bench/bench_services.py [--clients 8 32] [--seconds 15] [--json]

It takes the lab as it is: deployed, and doing nothing else. For each number of clients there are two runs. In the
first each client submits one task after the other, without waiting for answers: what comes out is the rate at which
tasks are accepted, that is durable on two hosts, and how long a submit takes. In the second each client waits for its
task before it submits the next one: how long a task takes from the submit until it is completed, by PostgreSQL's clock,
and as the client sees it. Clients are users of their own, so that no rate limit is met; what is refused anyway is
counted and shown.

Everything runs on the machine's own cores, these clients and the seven hosts included. The figures are printed, and
nothing is judged: the machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import typing as t
import uuid
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import httpx
import shannon_api as services
from shannon_api import Api, word

import lab

#: Requests of one user; a minute allows an admin 1000.
PER_USER = 800
#: Seconds between two looks at a task.
LOOK = 0.02

_USAGE = """
for unit in {units}; do
    cgroup=$(systemctl show -p ControlGroup --value "$unit")
    current=$(systemctl show -p MemoryCurrent --value "$unit")
    rss=0
    for pid in $(cat "/sys/fs/cgroup$cgroup/cgroup.procs" 2>/dev/null || systemctl show -p MainPID --value "$unit"); do
        found=$(awk '/^VmRSS:/ {{ print $2 }}' "/proc/$pid/status" 2>/dev/null || true)
        rss=$((rss + ${{found:-0}}))
    done
    echo "$unit $rss $current"
done
"""


@dataclass
class Run:
    """What clients saw."""

    seconds: float = 0.0
    submits: list[float] = field(default_factory=list)
    tasks: list[float] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def refuse(self, why: str) -> None:
        """Count what was no success."""
        with self.lock:
            self.refused[why] = self.refused.get(why, 0) + 1


def client(run: Run, mode: str, deadline: float, whole: bool) -> None:
    """One client: submits until the time is up.

    :param whole: whether it waits for each task's end.
    """
    while time.monotonic() < deadline:
        with Api(services.token(f"bench-{uuid.uuid4().hex}")) as api:
            for _request in range(PER_USER):
                if time.monotonic() >= deadline:
                    return
                query = f"Tell me of {word()} {word()}"
                began = time.monotonic()
                try:
                    answer = api.try_submit(query, mode, None, f"bench-{uuid.uuid4().hex}")
                except httpx.TransportError as exc:
                    run.refuse(type(exc).__name__)
                    continue
                took = time.monotonic() - began
                if not answer.is_success:
                    run.refuse(f"HTTP {answer.status_code}")
                    time.sleep(0.1)
                    continue
                task_id = answer.json()["task_id"]
                with run.lock:
                    run.submits.append(took)
                    run.ids.append(task_id)
                if whole and ended(api, run, task_id, deadline + 60):
                    with run.lock:
                        run.tasks.append(time.monotonic() - began)


def ended(api: Api, run: Run, task_id: str, deadline: float) -> bool:
    """Wait until a task has ended; whether it was completed."""
    while time.monotonic() < deadline:
        try:
            answer = api.http.get(f"/api/v1/tasks/{task_id}")
        except httpx.TransportError as exc:
            run.refuse(type(exc).__name__)
            continue
        if answer.is_success and services.status_of(answer.json()) in services.ENDED:
            status = services.status_of(answer.json())
            if status != "completed":
                run.refuse(f"task {status}")
            return status == "completed"
        time.sleep(LOOK)
    run.refuse("task without an end")
    return False


def clients(count: int, seconds: float, mode: str, whole: bool) -> tuple[Run, dict[str, dict[str, float]]]:
    """So many clients at once; what they saw, and the memory of the services in the middle of it."""
    run = Run()
    began = time.monotonic()
    threads = [threading.Thread(target=client, args=(run, mode, began + seconds, whole)) for _client in range(count)]
    for thread in threads:
        thread.start()
    time.sleep(seconds * 0.6)
    used = memory()
    for thread in threads:
        thread.join()
    run.seconds = seconds
    return run, used


def drained(ids: t.Sequence[str], timeout: float) -> list[float]:
    """Wait until tasks have ended; seconds from the submit to the end of each, by PostgreSQL's clock, sorted."""
    query = (
        "SELECT count(*) FILTER (WHERE status = 'completed'), count(*) FILTER (WHERE status IN ('queued', 'running'))"
        " FROM task_executions WHERE id = ANY(%s::uuid[])"
    )
    lab.wait_for(
        lambda: services.sql(query, list(ids))[0][1] == 0,
        "the end of all tasks",
        timeout,
        lambda: str(services.sql(query, list(ids))),
        interval=2,
    )
    times = (
        "SELECT extract(epoch FROM completed_at - created_at)::float8 FROM task_executions"
        " WHERE id = ANY(%s::uuid[]) AND status = 'completed' ORDER BY 1"
    )
    return [float(row[0]) for row in services.sql(times, list(ids))]


def memory() -> dict[str, dict[str, float]]:
    """MiB by service: resident and as its unit's limit counts it, the most that any host of the home region has."""
    command = _USAGE.format(units=" ".join(services.UNITS))
    found: dict[str, dict[str, float]] = {}
    for out in services.everywhere(services.SERVICE_HOSTS["a"], command).values():
        for line in out.splitlines():
            unit, rss, current = line.split()
            name = unit.removeprefix("shannon-").removesuffix(".service")
            kept = found.setdefault(name, {"rss": 0.0, "unit": 0.0})
            kept["rss"] = max(kept["rss"], int(rss) / 1024)
            if current.isdigit() and int(current) < 2**50:  # "[not set]", or the largest number: nobody counts
                kept["unit"] = max(kept["unit"], int(current) / 2**20)
    return found


def quantile(values: t.Sequence[float], share: float) -> float:
    """A quantile in milliseconds; 0 of nothing."""
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] if ordered else 0.0


def measured(count: int, seconds: float, mode: str, whole: bool) -> dict[str, t.Any]:
    """One run's figures."""
    run, used = clients(count, seconds, mode, whole)
    began = time.monotonic()
    times = drained(run.ids, 600)
    figures: dict[str, t.Any] = {
        "clients": count,
        "run": "submit and wait" if whole else "submit only",
        "mode": mode,
        "submits": len(run.submits),
        "submits_per_second": len(run.submits) / run.seconds,
        "submit_p50_ms": quantile(run.submits, 0.5),
        "submit_p99_ms": quantile(run.submits, 0.99),
        "completed": len(times),
        "completed_p50_ms": quantile(times, 0.5),
        "completed_p99_ms": quantile(times, 0.99),
        "seen_p50_ms": quantile(run.tasks, 0.5),
        "seen_p99_ms": quantile(run.tasks, 0.99),
        "drained_seconds": time.monotonic() - began,
        "refused": run.refused,
        "memory": used,
    }
    return figures


def table(figures: dict[str, t.Any]) -> None:
    """For people."""
    print(f"{'':34} {'submits':>17} {'submit ms':>15} {'completed ms':>17} {'as seen ms':>15}")
    print(f"{'clients  run              mode':34} {'count':>8} {'a second':>8} {'p50':>7} {'p99':>7}"
          f" {'p50':>8} {'p99':>8} {'p50':>7} {'p99':>7}")  # fmt: skip
    for run in figures["runs"]:
        head = f"{run['clients']:7}  {run['run']:15}  {run['mode']}"
        print(
            f"{head:34} {run['submits']:8} {run['submits_per_second']:8.1f}"
            f" {run['submit_p50_ms']:7.1f} {run['submit_p99_ms']:7.1f}"
            f" {run['completed_p50_ms']:8.1f} {run['completed_p99_ms']:8.1f}"
            f" {run['seen_p50_ms']:7.1f} {run['seen_p99_ms']:7.1f}"
        )
        if run["refused"]:
            print(f"{'':9}refused: {run['refused']}")
    print(f"\n{'memory in MiB':16} {'at rest':>19} {'under load':>19} {'afterwards':>19}")
    print(f"{'':16} " + " ".join(f"{'resident':>9} {'unit':>9}" for _moment in range(3)))
    for name, rest in figures["memory_at_rest"].items():
        load = [run["memory"].get(name, {"rss": 0.0, "unit": 0.0}) for run in figures["runs"]]
        busy = {key: max((one[key] for one in load), default=0.0) for key in ("rss", "unit")}
        after = figures["memory_afterwards"].get(name, {"rss": 0.0, "unit": 0.0})
        print(f"{name:16} " + " ".join(f"{one['rss']:9.1f} {one['unit']:9.1f}" for one in (rest, busy, after)))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[8, 32], help="how many at once, a run each (default 8 32)"
    )
    parser.add_argument("--seconds", type=float, default=15, help="of each run (default %(default)s)")
    parser.add_argument(
        "--mode", choices=["simple", "standard", "complex"], default="simple", help="of the tasks (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    if not (lab.INVENTORY / ".secrets" / "secrets.yml").exists():
        print("the lab is not deployed: make demo, or site.yml on inventories/lab, comes first", file=sys.stderr)
        return 2
    with Api() as api:
        # Connections and caches as in operation.
        for _turn in range(10):
            api.run(f"Tell me of {word()} {word()}", args.mode)
    time.sleep(5)
    figures: dict[str, t.Any] = {"memory_at_rest": memory(), "runs": []}
    for count in args.clients:
        for whole in (False, True):
            figures["runs"].append(measured(count, args.seconds, args.mode, whole))
    time.sleep(5)
    figures["memory_afterwards"] = memory()
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        table(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
