"""Dynamic updates of DNS: asked first, changed in one step, the key on no command line; and a real BIND."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import time
import typing as t
from pathlib import Path

import pytest
from module_runner import run_module

from ansible_collections.shannon.resilience.plugins.module_utils import dns_update
from ansible_collections.shannon.resilience.plugins.module_utils.dns_update import (
    TYPES,
    DnsServer,
    Found,
    Key,
    describe,
    parse_server,
)
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.modules import dns_records

SECRET = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"
ZONE, NAME = "example.org", "main.example.org"


class Fake:
    """Stands for dig and nsupdate: answers from C(held), and takes updates into it."""

    def __init__(self, **held: list[str]) -> None:
        self.held = held
        self.ttl = 5
        self.scripts: list[str] = []
        self.commands: list[t.Sequence[str]] = []
        self.status = "NOERROR"
        self.flags = "qr aa"
        self.refusal = ""
        self.deaf = False

    def __call__(self, command: t.Sequence[str], text: str, timeout: float) -> tuple[int, str]:
        self.commands.append(command)
        if command[0] == "dig":
            answers = [self._answer(kind) for kind in TYPES]
            return 0, "\n".join(answers)
        self.scripts.append(text)
        if self.refusal:
            return 2, self.refusal
        if not self.deaf:
            self._take(text)
        return 0, ""

    def _answer(self, kind: str) -> str:
        lines = [f";; ->>HEADER<<- opcode: QUERY, status: {self.status}, id: 1", f";; flags: {self.flags}; QUERY: 1"]
        # A server answers with the CNAME whatever it is asked for.
        for given in dict.fromkeys([kind, "CNAME"]):
            lines += [f"{NAME}.\t{self.ttl}\tIN\t{given}\t{value}" for value in self.held.get(given, [])]
        return "\n".join(lines)

    def _take(self, text: str) -> None:
        for line in text.splitlines():
            words = line.split()
            if words[:2] == ["update", "delete"]:
                self.held.pop(words[3], None)
            elif words[:2] == ["update", "add"]:
                self.held.setdefault(words[4], []).append(words[5])
                self.ttl = int(words[3])


def server(fake: Fake) -> DnsServer:
    return DnsServer("192.0.2.53", 53, ZONE, Key("shannon-update", SECRET), run=fake)


def test_what_a_name_says_already_is_left_alone() -> None:
    fake = Fake(A=["192.0.2.2", "192.0.2.1"])
    change = server(fake).bring(NAME, 5, {"A": ["192.0.2.1", "192.0.2.2"]})
    assert not change.changed and fake.scripts == []


def test_a_name_gets_what_is_wanted_and_nothing_else_in_one_step() -> None:
    fake = Fake(A=["192.0.2.1"], AAAA=["2001:db8::1"])
    change = server(fake).bring(NAME, 30, {"A": ["198.51.100.1", "198.51.100.2"]})
    assert change.changed
    assert change.before.values == {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]}
    assert change.after == Found({"A": ["198.51.100.1", "198.51.100.2"]}, 30)
    (script,) = fake.scripts
    lines = script.splitlines()
    assert lines[:3] == ["server 192.0.2.53 53", "zone example.org.", f"key hmac-sha256:shannon-update {SECRET}"]
    assert [line for line in lines if line.startswith("update delete")] == [f"update delete {NAME}. {k}" for k in TYPES]
    assert lines.count("send") == 1


def test_another_ttl_is_a_change() -> None:
    assert server(Fake(A=["192.0.2.1"])).bring(NAME, 60, {"A": ["192.0.2.1"]}).changed


def test_a_name_of_another_kind_replaces_addresses() -> None:
    fake = Fake(A=["192.0.2.1"])
    change = server(fake).bring(NAME, 5, {"CNAME": ["lb.example.net"]})
    assert change.after.values == {"CNAME": ["lb.example.net"]}
    assert f"update add {NAME}. 5 CNAME lb.example.net." in fake.scripts[0].splitlines()


def test_check_mode_asks_only() -> None:
    fake = Fake(A=["192.0.2.1"])
    change = server(fake).bring(NAME, 5, {"A": ["198.51.100.1"]}, check=True)
    assert change.changed and change.after.values == {"A": ["198.51.100.1"]}
    assert fake.scripts == [] and fake.held == {"A": ["192.0.2.1"]}


def test_the_key_is_on_no_command_line_and_in_no_text() -> None:
    fake = Fake()
    server(fake).bring(NAME, 5, {"A": ["192.0.2.1"]})
    assert not any(SECRET in word for command in fake.commands for word in command)
    assert SECRET not in repr(Key("shannon-update", SECRET))
    fake.refusal = f"incorrect key: {SECRET}"
    with pytest.raises(ResilienceError) as caught:
        server(fake).bring(NAME, 5, {"A": ["192.0.2.9"]})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("update failed: NOTAUTH(BADSIG)", "compare key_secret"),
        ("update failed: NOTAUTH(BADKEY)", "key_name or key_algorithm differ"),
        ("update failed: NOTAUTH(BADTIME)", "clocks"),
        ("update failed: REFUSED", "policy"),
        ("; Communication failed: timed out", "takes updates over TCP"),
    ],
)
def test_a_refusal_says_where_and_what_to_do(said: str, expected: str) -> None:
    fake = Fake()
    fake.refusal = said
    with pytest.raises(ResilienceError, match=expected) as caught:
        server(fake).bring(NAME, 5, {"A": ["192.0.2.1"]})
    assert "192.0.2.53:53" in str(caught.value) and NAME in str(caught.value)


def test_a_server_that_is_not_the_zones_is_not_written_to() -> None:
    for change in ({"status": "REFUSED"}, {"flags": "qr ra"}):
        fake = Fake(A=["192.0.2.1"])
        vars(fake).update(change)
        with pytest.raises(ResilienceError, match="is not the one of the zone"):
            server(fake).bring(NAME, 5, {"A": ["192.0.2.9"]})
        assert fake.scripts == []


def test_an_update_that_had_no_effect_is_an_error() -> None:
    fake = Fake(A=["192.0.2.1"])
    fake.deaf = True
    with pytest.raises(ResilienceError, match=r"still says A 192\.0\.2\.1 \(5 s\)"):
        server(fake).bring(NAME, 5, {"A": ["192.0.2.9"]})


def test_silence_is_bounded_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_given: t.Any, **named: t.Any) -> t.NoReturn:
        raise subprocess.TimeoutExpired("dig", named["timeout"])

    monkeypatch.setattr(dns_update.subprocess, "run", hang)
    with pytest.raises(
        ResilienceError, match=r"192\.0\.2\.53:53 gives no answer on main\.example\.org: silence for 4 s"
    ):
        DnsServer("192.0.2.53", 53, ZONE, Key("k", SECRET), timeout=3).read(NAME)


def test_a_host_without_the_tools_says_which_package() -> None:
    with pytest.raises(ResilienceError, match="bind9-dnsutils"):
        dns_update.run_command(["no-such-tool"], "", 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.53", ("192.0.2.53", 5353)),
        ("192.0.2.53:53", ("192.0.2.53", 53)),
        ("ns.example.org:54", ("ns.example.org", 54)),
        ("[2001:db8::53]:53", ("2001:db8::53", 53)),
        ("[2001:db8::53]", ("2001:db8::53", 5353)),
        ("2001:db8::53", ("2001:db8::53", 5353)),
    ],
)
def test_servers_are_read_in_every_form(text: str, expected: tuple[str, int]) -> None:
    assert parse_server(text, 5353) == expected


@pytest.mark.parametrize("text", ["", "a b", "host:99999", "host:", "[::1"])
def test_what_is_no_server_is_refused(text: str) -> None:
    with pytest.raises(ResilienceError, match="is no DNS server"):
        parse_server(text)


def test_nothing_is_described_as_nothing() -> None:
    assert describe(Found({})) == "nothing"


# -- a real BIND -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bind(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[int]:
    """A BIND on a port of loopback, with the zone example.org and a policy like the role's."""
    if not all(map(shutil.which, ("named", "dig", "nsupdate"))):
        pytest.skip("BIND is not on this machine")
    folder = tmp_path_factory.mktemp("bind")
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    (folder / "zone").write_text("$TTL 30\n@ IN SOA ns1 hostmaster ( 1 60 60 60 5 )\n@ IN NS ns1\nns1 IN A 127.0.0.1\n")
    (folder / "named.conf").write_text(
        f'key "shannon-update" {{ algorithm hmac-sha256; secret "{SECRET}"; }};\n'
        f'options {{ directory "{folder}"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; '
        "pid-file none; session-keyfile none; recursion no; dnssec-validation no; "
        "empty-zones-enable no; notify no; };\n"
        "controls { };\n"
        f'zone "{ZONE}" {{ type primary; file "{folder}/zone"; '
        "update-policy { grant shannon-update zonesub A AAAA CNAME; }; };\n"
    )
    with (folder / "log").open("wb") as log:
        named = subprocess.Popen(
            ["named", "-f", "-u", getpass.getuser(), "-c", str(folder / "named.conf")], stdout=log, stderr=log
        )
    try:
        _wait_until_it_answers(port, folder / "log")
        yield port
    finally:
        named.terminate()
        named.wait(10)


def _wait_until_it_answers(port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            DnsServer("127.0.0.1", port, ZONE, Key("shannon-update", SECRET), timeout=5).read(NAME)
            return
        except ResilienceError:
            time.sleep(0.2)
    raise AssertionError(f"named did not answer for its zone within 30 s: {log.read_text()[-500:]}")


def record(port: int, name: str, secret: str = SECRET, **changes: t.Any) -> dict[str, t.Any]:
    given = {
        "zone": ZONE,
        "name": name,
        "ttl": 5,
        "values": {"A": ["192.0.2.1"]},
        "servers": [f"127.0.0.1:{port}"],
        "key_name": "shannon-update",
        "key_secret": secret,
    }
    return {**given, **changes}


def test_bind_takes_updates_once(bind: int) -> None:
    name = f"once.{ZONE}"
    foreseen = run_module(dns_records, check=True, records=[record(bind, name)], timeout=20)
    assert foreseen["changed"] and foreseen["records"][0]["before"] == "nothing"
    first = run_module(dns_records, records=[record(bind, name)], timeout=20)
    assert first["changed"] and first["records"][0]["after"] == "A 192.0.2.1 (5 s)"
    assert first["diff"][0]["before"] == "nothing\n"
    assert not run_module(dns_records, records=[record(bind, name)], timeout=20)["changed"]
    moved = record(bind, name, values={"A": ["198.51.100.1"], "AAAA": ["2001:db8::1"]})
    again = run_module(dns_records, records=[moved], timeout=20)
    assert again["records"][0]["after"] == "A 198.51.100.1; AAAA 2001:db8::1 (5 s)"
    back = run_module(dns_records, records=[record(bind, name)], timeout=20)
    assert back["records"][0]["after"] == "A 192.0.2.1 (5 s)"


def test_bind_refuses_a_wrong_key_and_the_other_names_follow(bind: int) -> None:
    wrong = record(bind, f"wrong.{ZONE}", secret="A" * 32)
    unknown = record(bind, f"unknown.{ZONE}", key_name="somebody")
    right = record(bind, f"right.{ZONE}")
    found = run_module(dns_records, records=[wrong, unknown, right], timeout=20)
    assert found["failed"] and found["changed"]
    errors = [one["error"] for one in found["records"]]
    assert "BADSIG" in errors[0] and "compare key_secret" in errors[0]
    assert "BADKEY" in errors[1] and errors[2] == ""
    assert SECRET not in str(found) and "A" * 32 not in str(found)
    server_ = DnsServer("127.0.0.1", bind, ZONE, Key("shannon-update", SECRET), timeout=20)
    assert server_.read(f"wrong.{ZONE}").values == {}
    assert server_.read(f"right.{ZONE}").values == {"A": ["192.0.2.1"]}


def test_a_server_without_the_zone_and_one_that_is_dead_are_told_apart(bind: int) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = nobody.getsockname()[1]
        stranger = record(bind, "main.example.net", zone="example.net")
        silent = record(dead, f"main.{ZONE}")
        found = run_module(dns_records, records=[stranger, silent], timeout=5)
    assert "is not the one of the zone example.net" in found["records"][0]["error"]
    assert f"127.0.0.1:{dead} gives no answer" in found["records"][1]["error"]
