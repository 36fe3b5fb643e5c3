"""Moves of the cell between regions, as an operator makes them, and what they leave behind."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import typing as t

import shannon_api as services

import lab

REGISTRY_PORT = 12379
REPORTS = lab.INVENTORY / ".reports"
#: A test moves the cell again at once, which operators should not.
AGAIN = {kind: f"{kind}_accept_cooldown=true" for kind in ("failover", "switchover")}
HOSTS = services.DATA_HOSTS
_CUT = "e2e_cut"
#: Ends what cut_rules began.
MEND = f"nft delete table inet {_CUT} 2>/dev/null || true"
#: The registry's members, and where each has its data.
REGISTRY_MEMBERS = ["a1", "b1", "w1"]
REGISTRY_DATA = "/var/lib/shannon/etcd/registry/member"


def move(kind: str, to: str, *options: str, check: bool = True, timeout: float = 240) -> dict[str, t.Any]:
    """Run failover.yml or switchover.yml; the move as its report has it, with C(stdout) and C(took) beside it."""
    before = set(REPORTS.glob("*.json"))
    began = time.time()
    done = lab.playbook(
        kind, "-e", "cell=main", "-e", f"to={to}", "-e", AGAIN[kind], *options, timeout=timeout, check=check
    )  # fmt: skip
    took = time.time() - began
    written = sorted(set(REPORTS.glob("*.json")) - before)
    found: dict[str, t.Any] = json.loads(written[-1].read_text()) if written else {}
    found.update(stdout=done.stdout, status=done.returncode, took=took, began=began)
    return found


def phases(found: dict[str, t.Any]) -> str:
    """The phases of a move in a line."""
    return ", ".join(f"{one['name']} {one['end'] - one['begin']:.2f}" for one in found["phases"])


def record() -> dict[str, t.Any]:
    """The registry's record of the cell, asked on the witness or, if that one is away, on another member."""
    error: Exception | None = None
    for name in ("w1", "b1", "a1"):
        try:
            return t.cast("dict[str, t.Any]", json.loads(registry(name, "get", "/shannon/cells/main")))
        except (lab.LabError, ValueError) as exc:
            error = exc
    raise AssertionError(f"no member of the registry answers: {error}")


def registry(host: str, *words: str) -> str:
    """What etcdctl prints on a member of the registry."""
    address = lab.Host(host).address
    tls = "--cacert /etc/shannon/pki/ca.crt --cert /etc/shannon/pki/host.crt --key /etc/shannon/pki/host.key"
    command = f"ETCDCTL_API=3 etcdctl --endpoints https://{address}:{REGISTRY_PORT} {tls} --command-timeout 3s "
    return lab.Host(host).sh(command + " ".join(words) + " --print-value-only").strip()


def wait_for_home(region: str, timeout: float = 60) -> None:
    """Wait until a region serves as the home."""
    last: dict[str, t.Any] = {}

    def serves() -> bool:
        last.update(record())
        return last["home"] == region and last["state"] == "active"

    lab.wait_for(serves, f"region {region} as the cell's home", timeout, lambda: str(last))


def wait_until_whole(timeout: float = 180) -> dict[str, t.Any]:
    """Wait until both regions are well again, each in its part."""
    last: dict[str, t.Any] = {}

    def whole() -> bool:
        last.update(lab.status())
        return all(cell["healthy"] for cell in last["cells"].values())

    lab.wait_for(
        whole,
        "both regions as they should be",
        timeout,
        lambda: str(last.get("cells", {}).get("main", {}).get("problems")),
        2,
    )
    services.wait_until_well()
    return last


def bring_home(region: str = "a") -> None:
    """Have the cell at home where the other tests expect it."""
    wait_until_whole()
    if record()["home"] != region:
        # What is measured and claimed was so before; on full cores the synthetic task may take its time.
        move("switchover", region, "-e", "move_verify_timeout=150")
        wait_until_whole()


def kill(region: str) -> None:
    """Take the power of a whole region away."""
    _each(lambda host: host.kill(), region)


def start(region: str) -> None:
    """Give it back."""
    _each(lambda host: host.start(), region)


def _each(what: t.Callable[[lab.Host], None], region: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=3) as pool:
        list(pool.map(lambda name: what(lab.Host(name)), HOSTS[region]))


@contextlib.contextmanager
def cut(hosts: t.Sequence[str], others: t.Sequence[str], direction: str = "both") -> t.Iterator[float]:
    """No packet passes between two groups of hosts; yields when that began, in seconds since 1970.

    :param direction: both, or C(in) when the first group still reaches the others but hears nothing of them.
    """
    try:
        services.everywhere(hosts, cut_rules(others, direction))
        yield time.time()
    finally:
        services.everywhere(hosts, MEND)


def cut_rules(others: t.Sequence[str], direction: str = "both") -> str:
    """The shell commands that cut a host off from others; MEND takes them back."""
    addresses = ", ".join(lab.Host(name).address for name in others)
    rules = f"nft add table inet {_CUT}; nft add chain inet {_CUT} in '{{ type filter hook input priority -20; }}'; "
    rules += f"nft add rule inet {_CUT} in ip saddr '{{ {addresses} }}' drop; "
    if direction == "both":
        rules += f"nft add chain inet {_CUT} out '{{ type filter hook output priority -20; }}'; "
        rules += f"nft add rule inet {_CUT} out ip daddr '{{ {addresses} }}' drop; "
    return rules


def saved_rows(region: str, epoch: int) -> list[dict[str, t.Any]]:
    """The rows that a region saved before it was rewound; waits until it has rejoined."""
    found: list[dict[str, t.Any]] = []
    path = f"/var/lib/shannon/region-agent/diverged/main-epoch{epoch}/rows.jsonl"
    for name in HOSTS[region]:
        text = lab.Host(name).sh(f"cat {path} 2>/dev/null || true")
        found += [json.loads(line) for line in text.splitlines()]
    return found


def account_for(load: services.Load, region: str, epoch: int) -> int:
    """See that each acknowledged task that the new home lacks is in the loss report; returns how many those are.

    They are taken out of the load, which can be checked then.
    """
    load.stop()
    stored = set(load.facts(load.ids))
    lost = [one for one in load.acknowledged if one.task_id not in stored]
    if lost:
        rows = saved_rows(region, epoch)
        reported = {str(row["row"].get("id")) for row in rows if row["table"].endswith("task_executions")}
        unknown = [one.task_id for one in lost if one.task_id not in reported]
        assert not unknown, f"acknowledged, lost, and in no loss report: {unknown}"
        load.acknowledged = [one for one in load.acknowledged if one.task_id in stored]
    return len(lost)


def started(kind: str, to: str) -> subprocess.Popen[str]:
    """Start failover.yml or switchover.yml, and wait for nothing."""
    executable = str(lab.Path(sys.executable).with_name("ansible-playbook"))
    command = [executable, "-i", str(lab.INVENTORY), f"playbooks/{kind}.yml", "-e", "cell=main", "-e", f"to={to}"]
    return subprocess.Popen(
        [*command, "-e", AGAIN[kind]], cwd=lab.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def started_and_killed(kind: str, to: str, seconds: float) -> None:
    """Run it for so many seconds, and kill its controller."""
    process = started(kind, to)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
