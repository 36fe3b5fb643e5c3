"""The edge takes TLS, says 503 without a gateway, holds requests, and obeys its runtime API through a restart."""

from __future__ import annotations

testinfra_hosts = ["mw1"]
SOCKET = "/run/shannon-edge/admin.sock"
MAP = "/etc/shannon/edge/hold.map"
CURL = "curl -s -o /dev/null -w '%{http_code}' --cacert /etc/shannon/pki/ca.crt"
TIMED = "curl -s -o /dev/null -w '%{time_total} %{http_code}' --cacert /etc/shannon/pki/ca.crt"
ADDRESS = "https://mw1/health --resolve mw1:443:127.0.0.1"


def talk(command):
    """The shell's command that gives HAProxy a command of its runtime API, and prints the answer."""
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "s.sendall(sys.argv[2].encode()+b'\\n'); print(b''.join(iter(lambda: s.recv(65536), b'')).decode())"
    )
    return f'python3 -c "{script}" {SOCKET} "{command}"'


def said(host, command):
    """What HAProxy answers to a command of its runtime API."""
    return host.check_output(talk(command))


def admin_states(host):
    """Server to its administrative state, as a number."""
    lines = [line.split() for line in said(host, "show servers state").splitlines() if line and line[0].isdigit()]
    return {line[3]: int(line[6]) for line in lines if len(line) > 6}


def test_the_configuration_is_valid(host):
    host.run_expect([0], "haproxy -c -q -f /etc/shannon/edge/haproxy.cfg")


def test_the_distributions_own_instance_is_not_running(host):
    assert not host.service("haproxy").is_running


def test_it_listens_for_everybody_and_shows_its_statistics_to_itself(host):
    assert host.socket("tcp://0.0.0.0:443").is_listening
    assert host.socket("tcp://127.0.0.1:18405").is_listening
    assert not host.socket("tcp://0.0.0.0:18405").is_listening


def test_clients_verify_its_certificate(host):
    assert host.check_output(f"{CURL} https://mw1/health --resolve mw1:443:127.0.0.1") == "503"
    assert host.run("curl -s https://mw1/health --resolve mw1:443:127.0.0.1").rc == 60


def test_plain_http_is_not_answered(host):
    assert host.run("curl -s -m 3 http://127.0.0.1:443/health").rc != 0


def test_every_gateway_of_the_topology_is_a_server(host):
    assert set(admin_states(host)) == {"a_ma1", "b_mb1"}


def test_metrics_are_there(host):
    assert "haproxy_server_status" in host.check_output("curl -sf http://127.0.0.1:18405/metrics")


def test_it_may_not_write_anywhere_but_in_its_own_folder(host):
    shown = host.check_output("systemctl show shannon-edge -p ProtectSystem -p NoNewPrivileges -p ReadWritePaths")
    assert "ProtectSystem=strict" in shown
    assert "NoNewPrivileges=yes" in shown
    assert "ReadWritePaths=/var/lib/shannon-edge" in shown


def test_what_a_server_was_told_survives_a_reload_and_a_restart(host):
    said(host, "set server cell_main/a_ma1 state maint")
    state = said(host, "show servers state")
    host.check_output("install -o haproxy -g haproxy -m 0600 /dev/null /var/lib/shannon-edge/servers.state")
    host.check_output(f"cat > /var/lib/shannon-edge/servers.state <<'EOF'\n{state}\nEOF")
    for verb in ("reload", "restart"):
        host.run_expect([0], f"systemctl {verb} shannon-edge")
        found = admin_states(host)
        assert found["a_ma1"] & 1, verb
        assert not found["b_mb1"] & 1, verb
    said(host, "set server cell_main/a_ma1 state ready")
    host.check_output("rm /var/lib/shannon-edge/servers.state")


def test_requests_wait_while_their_cell_is_held(host):
    """A server that counts as up and isn't refuses what is released, so the time says how long it waited."""
    now = int(host.check_output("date +%s"))
    said(host, "disable health cell_main/a_ma1")
    said(host, "set server cell_main/a_ma1 health up")
    for protocol in ("--http1.1", "--http2"):
        said(host, f"add map {MAP} main hold-{now + 60}")
        command = f"{TIMED} {protocol} -d x=1 {ADDRESS}"
        answer = host.check_output(f"(sleep 2; {talk(f'del map {MAP} main')} >/dev/null) & {command}; wait")
        waited, status = answer.split()
        assert status == "503", protocol
        assert 1 < float(waited) < 10, protocol
    said(host, "enable health cell_main/a_ma1")


def test_a_word_whose_time_is_over_holds_nobody(host):
    now = int(host.check_output("date +%s"))
    said(host, f"add map {MAP} main hold-{now - 1}")
    waited, status = host.check_output(f"{TIMED} {ADDRESS}").split()
    said(host, f"del map {MAP} main")
    assert status == "503"
    assert float(waited) < 5
