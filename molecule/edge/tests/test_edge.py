"""The edge takes TLS, says 503 while no gateway is there, and obeys its runtime API through a reload and a restart."""

from __future__ import annotations

testinfra_hosts = ["mw1"]
SOCKET = "/run/shannon-edge/admin.sock"
CURL = "curl -s -o /dev/null -w '%{http_code}' --cacert /etc/shannon/pki/ca.crt"


def said(host, command):
    """What HAProxy answers to a command of its runtime API."""
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "s.sendall(sys.argv[2].encode()+b'\\n'); print(b''.join(iter(lambda: s.recv(65536), b'')).decode())"
    )
    return host.check_output(f'python3 -c "{script}" {SOCKET} "{command}"')


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
