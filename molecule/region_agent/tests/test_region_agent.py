"""An agent on each data host: the home's hold the lease, ports are open while it says so, and gates ask it first."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
import testinfra

testinfra_hosts = ["ma1"]
DATA_HOSTS = ["ma1", "ma2", "mb1"]
PKI = "/etc/shannon/pki"
TLS = f"--cacert {PKI}/ca.crt --cert {PKI}/host.crt --key {PKI}/host.key"
ETCDCTL = f"ETCDCTL_API=3 etcdctl --endpoints https://127.0.0.1:12379 --command-timeout 5s {TLS}"
GATE = "/usr/bin/python3 /opt/shannon/region-agent/gate.py"


def member(name):
    return testinfra.get_host(f"docker://{name}")


def wait_for(condition, what, timeout=30):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.5)


def word(name):
    return json.loads(member(name).file("/run/shannon-region-agent/main.json").content_string)


@contextlib.contextmanager
def listener(name):
    """Something on Redis' port that can't be asked what it is: it may take writes, as far as the agent knows."""
    script = "import socket, time; s = socket.create_server(('', 6379)); time.sleep(120)"
    member(name).check_output(f'systemd-run --quiet --collect --unit=molecule-listener python3 -c "{script}"')
    try:
        wait_for(lambda: member(name).socket("tcp://0.0.0.0:6379").is_listening, "the listener")
        yield
    finally:
        member(name).run("systemctl stop molecule-listener")


def knock(source, address):
    """Whether one host can connect to Redis' port of another."""
    script = f"import socket; socket.create_connection(('{address}', 6379), 2)"
    return member(source).run(f'python3 -c "{script}"').rc == 0


def address_of(name):
    return member(name).check_output("hostname -I").split()[0]


def open_ports(name):
    listed = member(name).check_output("nft --json list set inet shannon_fence open")
    (found,) = [item["set"] for item in json.loads(listed)["nftables"] if "set" in item]
    return sorted(one["elem"]["val"] for one in found.get("elem", []))


@pytest.mark.parametrize("name", DATA_HOSTS)
def test_the_agent_runs_and_starts_at_boot(name):
    assert member(name).service("shannon-region-agent").is_running
    assert member(name).service("shannon-region-agent").is_enabled
    assert member(name).service("shannon-fence").is_running
    assert member(name).service("shannon-fence").is_enabled


@pytest.mark.parametrize("name", DATA_HOSTS)
def test_its_secrets_are_roots_alone(name):
    settings = member(name).file("/etc/shannon/region-agent.json")
    assert (settings.user, settings.group, settings.mode) == ("root", "root", 0o600)


def test_the_home_holds_the_lease(host):
    wait_for(lambda: "region" in host.run(f"{ETCDCTL} get /shannon/leases/main").stdout, "the lease")
    lease = json.loads(host.check_output(f"{ETCDCTL} get /shannon/leases/main --print-value-only"))
    assert (lease["region"], lease["epoch"]) == ("a", 1)
    wait_for(lambda: word("ma1")["duty"] == "home", "the duty of ma1")
    assert (word("ma2")["duty"], word("mb1")["duty"]) == ("home", "standby")


@pytest.mark.parametrize("name", DATA_HOSTS)
def test_ports_are_open_while_the_agent_says_so_and_close_without_it(name):
    wait_for(lambda: open_ports(name) == [5432, 6379], "the open ports")
    member(name).check_output("systemctl kill --signal=STOP shannon-region-agent")
    try:
        wait_for(lambda: open_ports(name) == [], "the ports to close by themselves", 9)
    finally:
        member(name).check_output("systemctl kill --signal=CONT shannon-region-agent")
    wait_for(lambda: open_ports(name) == [5432, 6379], "the ports to open again")


def test_a_closed_port_refuses_everybody_but_the_host_itself():
    address = address_of("ma2")
    wait_for(lambda: open_ports("ma2") == [5432, 6379], "the open ports")
    with listener("ma2"):
        wait_for(lambda: knock("ma1", address), "the port of a home")
        member("ma2").check_output("systemctl stop shannon-region-agent")
        try:
            # An agent that was stopped says nothing more, and the kernel closes what it last opened.
            wait_for(lambda: open_ports("ma2") == [], "the port to close", 9)
            assert not knock("ma1", address)
            assert knock("ma2", "127.0.0.1")
        finally:
            member("ma2").run("systemctl start shannon-region-agent")
    wait_for(lambda: open_ports("ma2") == [5432, 6379], "the ports to open again")


def test_what_may_take_writes_outside_the_home_is_closed():
    address = address_of("mb1")
    wait_for(lambda: open_ports("mb1") == [5432, 6379], "the open ports")
    with listener("mb1"):
        wait_for(lambda: open_ports("mb1") == [], "the ports to close", 15)
        assert not knock("ma1", address)
    wait_for(lambda: open_ports("mb1") == [5432, 6379], "the ports to open again")


@pytest.mark.parametrize(
    ("name", "verb", "status"),
    [("ma1", "sentinel", 0), ("mb1", "sentinel", 1), ("ma1", "postgres", 0), ("mb1", "postgres", 0)],
)
def test_gates_ask_the_agent(name, verb, status):
    wait_for(lambda: word(name)["duty"] in ("home", "standby"), "a word")
    assert member(name).run(f"{GATE} {verb} main 10").rc == status


def test_a_gate_without_an_agent_stays_closed():
    member("mb1").check_output("systemctl stop shannon-region-agent && sleep 11")
    try:
        assert member("mb1").run(f"{GATE} postgres main 1").rc == 1
    finally:
        member("mb1").check_output("systemctl start shannon-region-agent")


@pytest.mark.parametrize("unit", ["patroni", "redis", "sentinel"])
def test_units_are_gated(host, unit):
    text = host.file(f"/etc/systemd/system/{unit}@.service.d/region-agent.conf").content_string
    assert "shannon-region-agent.service" in text


def test_only_hosts_of_the_topology_may_ask_it(host):
    address = address_of("ma1")
    known = host.run(f"curl -sS -m 5 {TLS} https://{address}:8443/status")
    assert json.loads(known.stdout)["region"] == "a"
    said = host.run(f"curl -sS -m 5 --cacert {PKI}/ca.crt https://{address}:8443/status")
    assert said.rc != 0
    assert "region" not in said.stdout


@pytest.mark.parametrize(("source", "status"), [("mb1", "200"), ("ma2", "403"), ("mw1", "403")])
def test_a_promise_is_given_to_a_data_host_of_the_region_that_asks(source, status):
    """Whoever else has a certificate of ours is refused; and while the registry answers nobody is promised anything."""
    body = json.dumps({"cell": "main", "epoch": 1, "region": "b"}).replace('"', '\\"')
    asked = f'curl -sS -m 5 {TLS} -w " %{{http_code}}" -d "{body}" https://{address_of("ma1")}:8443/promise'
    answer, _space, code = member(source).check_output(asked).rpartition(" ")
    assert code == status
    assert json.loads(answer)["promised"] is False


ECHO = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while True:
            said = self.request.recv(16)
            if not said:
                return
            self.request.sendall(said)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
Server(("", 6379), Echo).serve_forever()
"""
#: Two connections, of which one says its own port, and again and again a new one: which of them get through.
CALLER = """
import pathlib, socket, time
def call(one):
    try:
        one.settimeout(2)
        one.sendall(b"x")
        return one.recv(16) == b"x"
    except OSError:
        return False
def fresh():
    try:
        return call(socket.create_connection((ADDRESS, 6379), 2))
    except OSError:
        return False
kept, other = (socket.create_connection((ADDRESS, 6379), 2) for _ in range(2))
folder = pathlib.Path("/run/molecule-caller")
(folder / "port").write_text(str(kept.getsockname()[1]))
while True:
    got = [call(kept), call(other), fresh()]
    (folder / "new").write_text(" ".join(str(int(one)) for one in got))
    (folder / "new").rename(folder / "said")
    time.sleep(0.3)
"""


def test_what_a_follower_receives_goes_on_when_the_port_is_closed_to_all_others():
    """As in a switchover, where the old primary is closed before it stops."""
    address = address_of("ma2")
    wait_for(lambda: open_ports("ma2") == [5432, 6379], "the open ports")
    run = "systemd-run --quiet --collect --unit=molecule-fence"
    member("ma2").check_output(f"{run} python3 -c '{ECHO}'")
    try:
        wait_for(lambda: knock("ma1", address), "the listener")
        member("ma1").check_output("rm -rf /run/molecule-caller && mkdir /run/molecule-caller")
        caller = CALLER.replace("ADDRESS", f'"{address}"')
        member("ma1").check_output(f"{run} python3 -c '{caller}'")

        def said():
            return member("ma1").run("cat /run/molecule-caller/said").stdout.strip()

        wait_for(lambda: said() == "1 1 1", "all three to get through")
        port = member("ma1").file("/run/molecule-caller/port").content_string
        member("ma2").check_output("systemctl kill --signal=STOP shannon-region-agent")
        close = (
            "from shannon.services.region_agent.fence import Fence; "
            f"Fence().close([6379], [('{address_of('ma1')}', {port})], 6.0)"
        )
        member("ma2").check_output(f'/opt/shannon/services/current/bin/python -c "{close}"')
        wait_for(lambda: said() == "1 0 0", "the kept one alone to get through", 5)
        wait_for(lambda: said() == "0 0 0", "its time to end", 12)
    finally:
        for name in ("ma1", "ma2"):
            member(name).run("systemctl stop molecule-fence")
        member("ma2").run("systemctl kill --signal=CONT shannon-region-agent")
    wait_for(lambda: open_ports("ma2") == [5432, 6379], "the ports to open again")
