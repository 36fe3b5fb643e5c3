"""Snapshots of the registry: damaged ones are told, whatever etcdctl says of them."""

from __future__ import annotations

import hashlib
import json
import typing as t
from pathlib import Path

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils import registry_snapshot
from ansible_collections.shannon.resilience.plugins.module_utils.errors import ResilienceError
from ansible_collections.shannon.resilience.plugins.module_utils.registry_snapshot import (
    save,
    take,
    verify,
    verify_folder,
)
from ansible_collections.shannon.resilience.plugins.module_utils.tls import TlsFiles

BODY = b"a database" * 100
WHOLE = BODY + hashlib.sha256(BODY).digest()


@pytest.fixture
def etcdctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in etcdctl's place: one member gives a snapshot, another is dead."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "snapshot").write_bytes(WHOLE)
    program = folder / "etcdctl"
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '  *dead:*) echo "Error: context deadline exceeded" >&2; exit 1 ;;\n'
        f'  *"snapshot save"*) for last; do :; done; cp {folder}/snapshot "$last" ;;\n'
        '  *"snapshot status"*) echo \'{"hash":1,"revision":7,"totalKey":9,"totalSize":1}\' ;;\n'
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(registry_snapshot, "cells_in", lambda _path: {"main": {"home": "a", "epoch": 1}})
    return folder


def test_a_whole_one_is_told_with_its_revision(etcdctl: Path, tmp_path: Path) -> None:
    made = save("one:2379", TlsFiles(), str(tmp_path / "x.db"))
    assert (made.revision, made.keys, made.bytes) == (7, 9, len(WHOLE))
    assert made.sha256 == hashlib.sha256(WHOLE).hexdigest()


@pytest.mark.parametrize("damaged", [WHOLE[:-1], BODY[:50] + b"X" + BODY[51:] + WHOLE[-32:], b"", b"x" * 32])
def test_a_damaged_one_is_no_snapshot(etcdctl: Path, tmp_path: Path, damaged: bytes) -> None:
    (etcdctl / "snapshot").write_bytes(damaged)
    with pytest.raises(ResilienceError, match=r"damaged|no snapshot of etcd"):
        save("one:2379", TlsFiles(), str(tmp_path / "x.db"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"], "nothing is left of it"


def test_the_next_member_is_asked_when_one_is_dead(etcdctl: Path, tmp_path: Path) -> None:
    manifest = take(["dead:2379", "one:2379"], TlsFiles(), str(tmp_path / "backup"))
    assert (manifest["host"], manifest["revision"], manifest["cells"]) == (
        "one",
        7,
        {"main": {"home": "a", "epoch": 1}},
    )
    assert verify_folder(str(tmp_path / "backup")) == []
    with pytest.raises(ResilienceError, match="context deadline exceeded"):
        take(["dead:2379"], TlsFiles(), str(tmp_path / "other"))


@pytest.mark.parametrize("change", [{"revision": 8}, {"sha256": "0"}, {"cells": {}}])
def test_a_manifest_that_says_otherwise_is_told(etcdctl: Path, tmp_path: Path, change: dict[str, t.Any]) -> None:
    folder = tmp_path / "backup"
    manifest = take(["one:2379"], TlsFiles(), str(folder))
    (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
    (problem,) = verify_folder(str(folder))
    assert "the manifest says" in problem


def test_a_backup_that_was_not_finished_is_told(etcdctl: Path, tmp_path: Path) -> None:
    assert "not finished" in verify_folder(str(tmp_path))[0]


def test_a_file_that_is_gone_is_told(etcdctl: Path, tmp_path: Path) -> None:
    with pytest.raises(ResilienceError, match="No such file"):
        verify(str(tmp_path / "none"))
