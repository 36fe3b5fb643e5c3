"""Clients without a certificate or without a password get in nowhere: from another host as from the same one."""

from __future__ import annotations

import json

import pytest

import lab

#: Every TLS listener of a data host: port and what it is.
LISTENERS = {
    5432: "PostgreSQL",
    8008: "Patroni",
    6379: "Redis",
    26379: "Sentinel",
    6333: "Qdrant HTTP",
    6335: "Qdrant peers",
    2379: "etcd clients",
    2380: "etcd peers",
    12379: "registry clients",
    12380: "registry peers",
}

# Speaks to each listener without a certificate. A server may refuse in the handshake or (TLS 1.3) right after it, so
# one request is sent and what comes back is what counts: nothing, or a refusal.
NO_CERTIFICATE = """
import json, socket, ssl, struct, sys
host, ports = {host!r}, {ports!r}
asks = {{5432: None, 6379: b"PING\\r\\n", 26379: b"PING\\r\\n"}}
found = {{}}
for port in ports:
    context = ssl.create_default_context(cafile="/etc/shannon/pki/ca.crt")
    try:
        with socket.create_connection((host, port), timeout=5) as raw:
            if port == 5432:
                raw.sendall(struct.pack("!ii", 8, 80877103))
                raw.recv(1)
            with context.wrap_socket(raw, server_hostname=host) as tls:
                if port == 5432:
                    start = b"user\\0shannon\\0database\\0shannon\\0\\0"
                    tls.sendall(struct.pack("!ii", 8 + len(start), 196608) + start)
                else:
                    tls.sendall(asks.get(port) or b"GET /version HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
                found[port] = tls.recv(200).decode("latin-1")
    except (ssl.SSLError, ConnectionError, socket.timeout) as exc:
        found[port] = "refused: " + str(exc)
print(json.dumps(found))
"""

PLAIN = """
import json, socket
host, ports = {host!r}, {ports!r}
found = {{}}
for port in ports:
    try:
        with socket.create_connection((host, port), timeout=5) as raw:
            raw.settimeout(3)
            raw.sendall(b"PING\\r\\n\\r\\n" if port in (6379, 26379) else b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
            found[port] = raw.recv(200).decode("latin-1")
    except (ConnectionError, socket.timeout) as exc:
        found[port] = "refused: " + str(exc)
print(json.dumps(found))
"""


# Files that anybody may read and that hold one of the given words.
READABLE = """
import json, os, pathlib
found = []
for top in ("/etc/shannon", "/opt/shannon", "/var/lib/shannon", "/etc/systemd"):
    for folder, _folders, names in os.walk(top):
        for path in (pathlib.Path(folder, name) for name in names):
            if path.is_file() and path.stat().st_mode & 0o004 and path.stat().st_size < 10_000_000:
                content = path.read_bytes()
                if any(needle.encode() in content for needle in {needles!r}):
                    found.append(str(path))
print(json.dumps(found))
"""


def is_refusal(answer: str) -> bool:
    """Nothing came back, or a word that says no; any other answer means that somebody was spoken with."""
    return (
        answer in ("", "N")  # PostgreSQL closes, or has no TLS to offer to what it takes for a request
        or answer.startswith("refused: ")
        or answer.startswith("E")  # PostgreSQL's error message
        or answer.startswith("HTTP/1.0 400 ")  # Go's word to those who speak plain HTTP to TLS
        or answer.startswith("\x15\x03")  # a TLS alert
    )


@pytest.mark.parametrize("origin", ["a1", "b2"], ids=["same-host", "other-host"])
@pytest.mark.parametrize("attempt", [NO_CERTIFICATE, PLAIN], ids=["no-certificate", "plain-text"])
def test_without_a_certificate_nothing_answers(deployed: dict[str, float], origin: str, attempt: str) -> None:
    target = lab.Host("a1")
    source = attempt.format(host=target.address, ports=sorted(LISTENERS))
    answers = {int(port): answer for port, answer in json.loads(lab.Host(origin).python(source)).items()}
    let_in = {LISTENERS[port]: answer for port, answer in answers.items() if not is_refusal(answer)}
    assert let_in == {}


@pytest.mark.parametrize("origin", ["a1", "b2"], ids=["same-host", "other-host"])
def test_with_a_certificate_but_without_a_password_nothing_is_read(deployed: dict[str, float], origin: str) -> None:
    target = lab.Host("a1").address
    host = lab.Host(origin)
    pki = "/etc/shannon/pki"
    wrong = host.sh(
        f"PGPASSWORD=wrong psql 'host={target} port=5432 dbname=shannon user=shannon sslmode=verify-full "
        f"sslrootcert={pki}/ca.crt sslcert={pki}/host.crt sslkey={pki}/host.key' -c 'SELECT 1' 2>&1",
        check=False,
    )
    assert "password authentication failed" in wrong
    redis = f"redis-cli -h {target} --tls --cacert {pki}/ca.crt --cert {pki}/host.crt --key {pki}/host.key"
    assert "NOAUTH" in host.sh(f"{redis} -p 6379 GET x 2>&1", check=False)
    assert "NOAUTH" in host.sh(f"{redis} -p 26379 SENTINEL masters 2>&1", check=False)
    curl = f"curl -s -o /dev/null -w '%{{http_code}}' --cacert {pki}/ca.crt --cert {pki}/host.crt --key {pki}/host.key"
    assert host.sh(f"{curl} https://{target}:6333/collections", check=False).strip() in ("401", "403")
    assert host.sh(f"{curl} -X PATCH -d '{{}}' https://{target}:8008/config", check=False).strip() in ("401", "403")


def test_a_port_that_is_not_of_the_topology_is_closed_to_other_hosts(deployed: dict[str, float]) -> None:
    """A listener that nobody declared, on a1: reachable there, and from nowhere else."""
    a1 = lab.Host("a1")
    a1.sh("systemd-run --quiet --collect --unit=e2e-stray python3 -m http.server 9999")
    try:
        ask = f"curl -s -m 3 -o /dev/null -w '%{{http_code}}' http://{a1.address}:9999/"
        lab.wait_for(lambda: a1.sh(ask, check=False).strip() == "200", "the stray listener", 10)
        assert lab.Host("a2").sh(ask, check=False).strip() == "000"
    finally:
        a1.sh("systemctl stop e2e-stray")


def test_the_controller_is_no_member_of_the_topology(deployed: dict[str, float]) -> None:
    """Only ssh is open to hosts that are not in the inventory."""
    for port in (5432, 6379, 6333, 2379, 12379):
        probe = lab.run("timeout", "3", "bash", "-c", f"</dev/tcp/{lab.Host('a1').address}/{port}", check=False)
        assert probe.returncode != 0, f"port {port} of a1 answers the controller"


def test_secrets_are_in_no_process_list_and_readable_by_nobody_else(deployed: dict[str, float]) -> None:
    import yaml

    secrets = yaml.safe_load((lab.INVENTORY / ".secrets" / "secrets.yml").read_text())
    for name in ("a1", "b1"):
        processes = lab.Host(name).sh("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' ' '")
        assert [key for key, value in secrets.items() if value in processes] == []
        # Over standard input, since sudo logs the commands that it runs.
        source = READABLE.format(needles=list(secrets.values()))
        assert json.loads(lab.Host(name).python(source)) == []


def test_journals_hold_no_secret(deployed: dict[str, float]) -> None:
    import yaml

    secrets = yaml.safe_load((lab.INVENTORY / ".secrets" / "secrets.yml").read_text())
    for name in ("a1", "b1", "w1"):
        journal = lab.Host(name).sh("journalctl --no-pager -o cat | cat", timeout=120)
        assert [key for key, value in secrets.items() if value in journal] == []
