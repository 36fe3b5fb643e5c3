"""The lab as the tests see it: hosts that can be killed and started, commands on them, and clients that write.

Hosts are reached over ssh, never through Docker, so that a host that is cut off is cut off from the tests too.
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import os
import shlex
import subprocess
import sys
import tarfile
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories" / "lab"
DEFINITION = json.loads((ROOT / "lab" / "definition.json").read_text())
REMOTE = "/var/tmp/shannon-e2e"

sys.path.insert(0, str(ROOT / "lab"))
from shannon_lab.access import ssh_argv
from shannon_lab.definition import load

LAB = load()


class LabError(Exception):
    """A command on the lab failed; the text has the command and what it printed."""


def run(*command: str, timeout: float = 600, check: bool = True, **options: t.Any) -> subprocess.CompletedProcess[str]:
    """Run a command on the controller; bounded in time."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False, **options)
    if check and done.returncode:
        raise LabError(
            f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done


def playbook(name: str, *options: str, timeout: float = 900, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one of the collection's playbooks on the lab's inventory."""
    executable = Path(sys.executable).with_name("ansible-playbook")
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
    inventory = [] if any(option in ("-i", "--inventory") for option in options) else ["-i", str(INVENTORY)]
    return run(
        str(executable), *inventory, f"playbooks/{name}.yml", *options, timeout=timeout, check=check, env=environment
    )


def recap(output: str) -> dict[str, dict[str, int]]:
    """The numbers of a PLAY RECAP, per host."""
    found: dict[str, dict[str, int]] = {}
    for line in output.split("PLAY RECAP", 1)[-1].splitlines()[1:]:
        host, _colon, counts = line.partition(":")
        if "=" in counts:
            found[host.strip()] = {key: int(value) for key, value in (pair.split("=") for pair in counts.split())}
    return found


def secret(name: str) -> str:
    """One of the lab's generated secrets."""
    import yaml

    return str(yaml.safe_load((INVENTORY / ".secrets" / "secrets.yml").read_text())[name])


@dataclass(frozen=True)
class Host:
    """A host of the lab."""

    name: str

    @property
    def address(self) -> str:
        """IP address from the lab's definition."""
        return str(DEFINITION["hosts"][self.name]["address"])

    def sh(self, command: str, check: bool = True, timeout: float = 60, stdin: str | None = None) -> str:
        """Run a shell command as root over ssh; returns its standard output."""
        words = ssh_argv(LAB, LAB.host(self.name))
        done = run(*words, "sudo sh -c " + shlex.quote(command), timeout=timeout, check=check, input=stdin)
        return done.stdout

    def python(self, source: str, check: bool = True) -> str:
        """Run a Python program as root on the host, its source over standard input."""
        return self.sh("python3 -", check=check, stdin=source)

    def kill(self) -> None:
        """Take the power away: nothing on the host gets to say goodbye."""
        run(sys.executable, "lab/lab.py", "kill", self.name)

    def start(self) -> None:
        """Give the power back."""
        run(sys.executable, "lab/lab.py", "start", self.name)


@functools.cache
def _program() -> str:
    """writer.py and the library that it uses, as an archive in base64."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(ROOT / "tests" / "e2e" / "writer.py", "writer.py")
        tar.addfile(tarfile.TarInfo("shannon_library/__init__.py"))
        for path in sorted((ROOT / "plugins" / "module_utils").glob("*.py")):
            if path.name != "__init__.py":
                tar.add(path, f"shannon_library/{path.name}")
    return base64.b64encode(archive.getvalue()).decode()


@dataclass
class Writer:
    """A client that writes to one store through the data proxy of a host; see writer.py."""

    host: Host
    store: str
    secret_name: str
    first: int
    gaps: dict[str, float] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """Name of the transient systemd unit that runs it."""
        return f"shannon-e2e-{self.store}"

    def __enter__(self) -> Writer:
        self.host.sh(f"mkdir -p {REMOTE} && chmod 700 {REMOTE} && rm -f {REMOTE}/{self.store}.log")
        self.host.sh(f"base64 -d | tar -xz -C {REMOTE}", stdin=_program(), timeout=60)
        self.host.sh(f"umask 077; cat > {REMOTE}/{self.store}.secret", stdin=secret(self.secret_name))
        self.host.sh(
            f"systemd-run --quiet --collect --unit={self.unit} /usr/bin/python3 {REMOTE}/writer.py {self.store} "
            f"--log {REMOTE}/{self.store}.log --password-file {REMOTE}/{self.store}.secret --first {self.first}"
        )
        self.wait_for_acknowledgements(20)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.host.sh(f"systemctl stop {self.unit}", check=False)

    def entries(self) -> list[dict[str, t.Any]]:
        """All lines of the log so far."""
        return [json.loads(line) for line in self.host.sh(f"cat {REMOTE}/{self.store}.log", check=False).splitlines()]

    def acknowledged(self) -> list[dict[str, t.Any]]:
        """The acknowledged writes so far."""
        return [entry for entry in self.entries() if "id" in entry]

    def wait_for_acknowledgements(self, count: int, timeout: float = 60) -> None:
        """Wait until so many more writes were acknowledged."""
        before = len(self.acknowledged())
        wait_for(
            lambda: len(self.acknowledged()) >= before + count,
            f"{count} more acknowledged writes to {self.store}",
            timeout,
            lambda: str(self.entries()[-3:]),
        )

    def wait_for_recovery(self, since: float, timeout: float = 90) -> None:
        """Wait until writes have been acknowledged again for two seconds after the given time."""
        wait_for(
            lambda: sum(entry["at"] > since for entry in self.acknowledged()[-40:]) >= 40,
            f"steady acknowledged writes to {self.store} after the fault",
            timeout,
            lambda: str(self.entries()[-3:]),
        )

    def longest_gap(self) -> float:
        """The longest time between two acknowledged writes that followed each other; seconds."""
        times = [entry["at"] for entry in self.acknowledged()]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    def missing(self) -> list[int]:
        """Stop writing, and return the acknowledged ids that the store does not have."""
        self.host.sh(f"systemctl stop {self.unit}", check=False)
        out = self.host.sh(
            f"python3 {REMOTE}/writer.py {self.store} --check --log {REMOTE}/{self.store}.log "
            f"--password-file {REMOTE}/{self.store}.secret",
            timeout=120,
        )
        return list(json.loads(out))


def wait_for(
    condition: t.Callable[[], bool],
    what: str,
    timeout: float,
    seen: t.Callable[[], str] = lambda: "",
    interval: float = 0.5,
) -> None:
    """Poll until the condition holds; a lab that doesn't answer yet counts as "not yet"."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            if condition():
                return
        except (LabError, subprocess.TimeoutExpired):
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:.0f} s for {what}; last seen: {seen()}")
        time.sleep(interval)


def status_playbook() -> dict[str, t.Any]:
    """What status.yml writes as JSON."""
    path = ROOT / ".lab" / "status.json"
    path.unlink(missing_ok=True)
    playbook("status", "-e", f"status_json={path}", timeout=60)
    return t.cast(dict[str, t.Any], json.loads(path.read_text()))


@functools.cache
def topology() -> dict[str, t.Any]:
    """What the inventory says, as the module of that name derives it."""
    words = (str(Path(sys.executable).with_name("ansible")), "-i", str(INVENTORY), "localhost")
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    said = run(*words, "-m", "shannon.resilience.topology", timeout=60, env=environment).stdout
    return t.cast(dict[str, t.Any], json.loads(said[said.index("{") :])["topology"])


#: What the module cell_info does, with the library of the services' release. An Ansible run for each look at a lab that
#: is waited for would be most of the lab's load.
_LOOK = """
import json
import sys
from shannon.resilience.cell_probe import Probe
from shannon.resilience.cell_status import summarise
from shannon.resilience.tls import TlsFiles

given = json.loads({given!r})
probe = Probe(topology=given["topology"], tls=TlsFiles(), redis_username="monitor", timeout=1.0, **given["secrets"])
json.dump(summarise(given["topology"], probe.observe(), given["objectives"]), sys.stdout)
"""


def status(timeout: float = 30) -> dict[str, t.Any]:
    """What status.yml would say, asked from the first host that can be reached."""
    import yaml

    secrets = {"redis_password": secret("redis_monitor"), "qdrant_api_key": secret("qdrant_read_only_api_key")}
    objectives = yaml.safe_load((ROOT / "config" / "objectives.yml").read_text())["backups"]
    given = json.dumps({"topology": topology(), "secrets": secrets, "objectives": objectives})
    failure: Exception | None = None
    for name in ("w1", "a1", "b1", "a2", "b2"):
        try:
            program = "/opt/shannon/services/current/bin/python -"
            said = Host(name).sh(program, timeout=timeout, stdin=_LOOK.format(given=given))
            return t.cast(dict[str, t.Any], json.loads(said))
        except (LabError, subprocess.TimeoutExpired) as exc:
            failure = exc
    raise LabError(f"no host could be asked for the status: {failure}")


def member_with(info: t.Mapping[str, t.Any], component: str, region: str, role: str) -> str:
    """Which host of a region has a role in a component.

    :raises LabError: nobody says so.
    """
    cell = info["cells"]["main"]
    for member in cell[component][region]["members"]:
        if member["role"] == role:
            return str(member["name"])
    raise LabError(f"no {role} of {component} in region {region}: {cell['problems']}")


def show(capsys: t.Any, *lines: str) -> None:
    """Print figures past pytest's capture.

    :param capsys: the test's fixture of that name.
    """
    with capsys.disabled():
        print("\n  " + "\n  ".join(lines))


#: How far a figure may miss its target before a test fails. Seven hosts share the machine's two cores with the test, so
#: a target is for tests/bench/ to measure; what is caught here is a recovery that waits for something it should not.
MARGIN = 4.0


def within(capsys: t.Any, what: str, seconds: float, target: float) -> None:
    """Print a figure beside its target; fails when it is so far off that no load explains it.

    :param target: seconds, from the issue that asked for it.
    """
    verdict = "" if seconds <= target else ", MISSED"
    show(capsys, f"{what}: {seconds:.1f} s (target {target:g} s{verdict})")
    assert seconds <= MARGIN * target, f"{what}: {seconds:.1f} s, more than {MARGIN:g} times the target of {target:g} s"
