# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration: what makes this host what it is, and what the controller sent along."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import typing as t
from datetime import datetime, timezone
from pathlib import Path

from ..settings import Cell
from .base import Sandbox
from .files import FilesKind, read_manifest

#: Below the runner's folder: what playbooks/backup.yml brought from the controller, for the next run only.
INCOMING = "incoming"


class ConfigKind(FilesKind):
    """Files as they are, with the SHA-256 of each."""

    name = "config"

    def fill(self, cell: Cell | None, folder: Path) -> dict[str, t.Any]:
        left_out: list[str] = []
        for path in self.settings.config_paths:
            _copy(Path(path), folder / "host" / path.lstrip("/"), left_out)
        incoming = self.settings.folder(INCOMING)
        has_controller = any(incoming.iterdir())
        if has_controller:
            _copy(incoming, folder / "controller", left_out)
        return {
            "kind": self.name,
            "host": self.settings.host,
            "taken_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "controller": has_controller,
            "files": hashes(folder),
            "left_out": left_out,
        }

    def summary(self, manifest: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        return {
            "files": len(manifest.get("files") or {}),
            "left_out": len(manifest.get("left_out") or []),
            "controller": bool(manifest.get("controller")),
        }

    @contextlib.contextmanager
    def prove(self, cell: Cell | None, folder: Path) -> t.Iterator[Sandbox]:
        from .base import Found

        manifest = read_manifest(folder, Found("this one", self.settings.region, 0.0))
        yield Sandbox(differences(manifest["files"], hashes(folder)), {})


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file below a folder, without the manifest."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not path.is_symlink() and name != "manifest.json":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(wanted: t.Mapping[str, str], found: t.Mapping[str, str]) -> list[str]:
    """Files that are missing, too many, or not what they were."""
    lines = [f"{name} is missing" for name in wanted if name not in found]
    lines += [f"{name} was not in the backup" for name in found if name not in wanted]
    return lines + [
        f"{name} is not what it was" for name, digest in wanted.items() if found.get(name, digest) != digest
    ]


def _copy(source: Path, target: Path, left_out: list[str]) -> None:
    """Copy a folder; what can't be read is named, and stops nothing."""
    for root, folders, files in os.walk(source, onerror=lambda exc: left_out.append(str(exc.filename))):
        folders.sort()
        here = target / Path(root).relative_to(source)
        here.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in sorted(files):
            path = Path(root) / name
            if path.is_symlink() or not path.is_file():
                continue
            try:
                shutil.copyfile(path, here / name)
                os.chmod(here / name, 0o600)
            except OSError:
                left_out.append(str(path))
