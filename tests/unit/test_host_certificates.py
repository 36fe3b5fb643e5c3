"""The module that keeps the certificates: what it reports, what it leaves alone, and that check mode writes nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import typing as t
from concurrent.futures import ProcessPoolExecutor

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args

from ansible_collections.shannon.resilience.plugins.modules import host_certificates

HOSTS = {"a1": "192.0.2.1", "b1": "192.0.2.2"}


def run(path: pathlib.Path, check: bool = False, **changes: t.Any) -> dict[str, t.Any]:
    """What Ansible gets from the module."""
    said = io.StringIO()
    arguments = {"path": str(path), "hosts": HOSTS, **changes, "_ansible_check_mode": check}
    with patch_module_args(arguments), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        host_certificates.main()
    return t.cast("dict[str, t.Any]", json.loads(said.getvalue()))


def everything(path: pathlib.Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def create(path: str) -> bool:
    return bool(run(pathlib.Path(path))["ca_created"])


@pytest.fixture
def pki(tmp_path: pathlib.Path) -> pathlib.Path:
    run(tmp_path / "pki")
    return tmp_path / "pki"


def test_the_first_run_makes_all(tmp_path: pathlib.Path) -> None:
    result = run(tmp_path / "pki")
    assert result["changed"] and result["ca_created"]
    assert set(result["renewed"]) == set(result["expires"]) == set(HOSTS)
    assert result["expires_first"] in HOSTS
    assert result["ca_expires"] > result["expires"]["a1"]


def test_the_second_run_changes_nothing(pki: pathlib.Path) -> None:
    before = everything(pki)
    result = run(pki)
    assert not result["changed"]
    assert result["renewed"] == {}
    assert everything(pki) == before


def test_check_mode_on_an_empty_controller_writes_nothing(tmp_path: pathlib.Path) -> None:
    result = run(tmp_path / "pki", check=True)
    assert result["changed"] and result["ca_created"]
    assert set(result["renewed"]) == set(HOSTS)
    assert result["expires"] == {}
    assert list(tmp_path.iterdir()) == []


def test_check_mode_says_what_would_be_renewed(pki: pathlib.Path) -> None:
    before = everything(pki)
    result = run(pki, check=True, hosts={**HOSTS, "b1": "192.0.2.99"})
    assert set(result["renewed"]) == {"b1"}
    assert "b1: new certificate" in result["diff"]["after"]
    assert everything(pki) == before


def test_only_who_needs_one_gets_a_new_certificate(pki: pathlib.Path) -> None:
    before = everything(pki)
    result = run(pki, hosts={**HOSTS, "a2": "192.0.2.3"})
    assert set(result["renewed"]) == {"a2"}
    assert {path: text for path, text in everything(pki).items() if path in before} == before


def test_a_wider_margin_renews_all_under_the_same_ca(pki: pathlib.Path) -> None:
    ca = (pki / "ca.crt").read_bytes()
    result = run(pki, renew_before_days=400)
    assert set(result["renewed"]) == set(HOSTS)
    assert not result["ca_created"]
    assert (pki / "ca.crt").read_bytes() == ca


def test_no_key_is_ever_reported(tmp_path: pathlib.Path) -> None:
    assert "PRIVATE" not in json.dumps(run(tmp_path / "pki"))


@pytest.mark.parametrize("check", [False, True])
def test_a_lost_ca_key_stops_it(pki: pathlib.Path, check: bool) -> None:
    os.unlink(pki / "ca.key")
    before = everything(pki)
    result = run(pki, check=check)
    assert result["failed"]
    assert "ca.key" in result["msg"] and "Restore" in result["msg"]
    assert everything(pki) == before


def test_the_end_of_the_ca_is_announced(pki: pathlib.Path) -> None:
    assert not run(pki).get("warnings")
    warned = json.dumps(run(pki, days=5000, renew_before_days=1)["warnings"])
    assert "the CA ends on" in warned and "README" in warned


def test_a_folder_that_can_not_be_made_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(tmp_path / "file" / "pki")
    assert result["failed"]
    assert str(tmp_path / "file" / "pki") in result["msg"]


def test_half_of_a_brought_ca_is_refused(tmp_path: pathlib.Path) -> None:
    result = run(tmp_path / "pki", ca_cert_file=str(tmp_path / "root.crt"))
    assert result["failed"]
    assert "ca_key_file" in result["msg"]


def test_the_ca_can_be_changed_as_the_readme_says(pki: pathlib.Path, tmp_path: pathlib.Path) -> None:
    second = tmp_path / "pki-2"
    assert run(second, hosts={})["ca_created"]
    result = run(second)
    assert set(result["renewed"]) == set(HOSTS) and not result["ca_created"]


def test_runs_at_once_agree_on_one_ca(tmp_path: pathlib.Path) -> None:
    with ProcessPoolExecutor(3) as pool:
        made = list(pool.map(create, [str(tmp_path / "pki")] * 3))
    assert sorted(made) == [False, False, True]


def test_without_cryptography_it_says_what_to_install(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_certificates.pki, "HAS_CRYPTOGRAPHY", False)
    assert "cryptography" in run(tmp_path / "pki")["msg"]
    assert basic.missing_required_lib("cryptography")
