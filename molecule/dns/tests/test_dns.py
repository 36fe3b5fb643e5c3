"""The DNS server answers for its zone and for nothing else, and takes signed updates of addresses alone."""

from __future__ import annotations

testinfra_hosts = ["mw1"]
ZONE = "shannon.internal"
DIG = "dig @127.0.0.1 +time=2 +tries=1"
CONFIGURATION = "/etc/bind/shannon.conf"
#: The shell's word for the key as nsupdate takes it; the secret stays on the host.
KEY = f"hmac-sha256:shannon-update $(sed -n 's/^ *secret \"\\(.*\\)\";/\\1/p' {CONFIGURATION})"
WRONG = "hmac-sha256:shannon-update " + "A" * 32


def update(host, line, key=KEY):
    """Give one line to nsupdate; its status and output."""
    lines = ["server 127.0.0.1", f"zone {ZONE}.", f"key {key}", line, "send"]
    return host.run('printf "%s\\n" ' + " ".join(f'"{one}"' for one in lines) + " | nsupdate -v -t 3")


def says(host, name, kind="A"):
    """What the server says of a name."""
    return host.check_output(f"{DIG} +short -t {kind} {name}.{ZONE}.").split()


def test_the_configuration_is_valid_and_keeps_the_key(host):
    host.run_expect([0], f"named-checkconf {CONFIGURATION}")
    assert (host.file(CONFIGURATION).mode, host.file(CONFIGURATION).group) == (0o640, "bind")


def test_the_distributions_own_instance_is_not_running(host):
    assert not host.service("named").is_running


def test_it_names_itself(host):
    assert says(host, "mw1") != []
    assert host.check_output(f"{DIG} +short -t NS {ZONE}.") == f"mw1.{ZONE}."


def test_it_listens_for_others_over_both_protocols(host):
    address = says(host, "mw1")[0]
    for protocol in ("tcp", "udp"):
        assert host.socket(f"{protocol}://{address}:53").is_listening


def test_a_signed_update_is_taken_and_survives_a_restart(host):
    assert update(host, f"update add main.{ZONE}. 5 A 192.0.2.1").rc == 0
    assert says(host, "main") == ["192.0.2.1"]
    host.run_expect([0], "systemctl restart shannon-dns")
    host.run_expect(
        [0], f"for i in $(seq 50); do {DIG} +short {ZONE}. SOA | grep -q . && exit 0; sleep 0.1; done; exit 1"
    )
    assert says(host, "main") == ["192.0.2.1"]
    assert update(host, f"update delete main.{ZONE}. A").rc == 0
    assert says(host, "main") == []


def test_a_wrong_key_and_none_are_refused(host):
    refused = update(host, f"update add wrong.{ZONE}. 5 A 192.0.2.1", WRONG)
    assert refused.rc != 0 and "BADSIG" in refused.stdout + refused.stderr
    lines = f"server 127.0.0.1\\nzone {ZONE}.\\nupdate add wrong.{ZONE}. 5 A 192.0.2.1\\nsend\\n"
    bare = host.run(f"printf '{lines}' | nsupdate -v -t 3")
    assert bare.rc != 0 and "REFUSED" in bare.stdout + bare.stderr
    assert says(host, "wrong") == []


def test_the_key_may_not_change_who_answers_for_the_zone(host):
    for line in (f"update add {ZONE}. 5 NS evil.example.", f"update add text.{ZONE}. 5 TXT hello"):
        assert update(host, line).rc != 0


def test_it_resolves_nothing_for_others_and_hands_out_no_zone(host):
    assert "status: REFUSED" in host.check_output(f"{DIG} +recurse -t A example.org.")
    assert "Transfer failed" in host.run(f"{DIG} -t AXFR {ZONE}.").stdout
    assert host.check_output(f"{DIG} +short -c CH -t TXT version.bind.") == ""


def test_it_may_write_nowhere_but_in_its_own_folder(host):
    shown = host.check_output(
        "systemctl show shannon-dns -p ProtectSystem -p NoNewPrivileges -p User -p ReadWritePaths"
    )
    assert "ProtectSystem=strict" in shown
    assert "NoNewPrivileges=yes" in shown
    assert "User=bind" in shown
    assert "ReadWritePaths=/var/lib/bind/shannon" in shown
