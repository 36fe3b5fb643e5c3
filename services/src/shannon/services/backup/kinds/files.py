# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinds whose backups are files: a folder with a manifest, in the restic repositories of all regions."""

from __future__ import annotations

import abc
import contextlib
import json
import shutil
import typing as t
from pathlib import Path

from shannon.resilience.errors import ResilienceError
from shannon.resilience.restic import Repository, Restic, restored_path
from shannon.services.common import logs

from ..settings import Cell, Settings
from .base import Found, Made, Sandbox

_log = logs.get(__name__)
MANIFEST = "manifest.json"
#: As many digits of a snapshot's id as restic itself shows; it takes them, too.
SHORT = 8


class Repositories:
    """The restic repositories of all regions, through their append-only servers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def of(self, region: str) -> Restic:
        """One region's repository."""
        settings = self._settings
        if region not in settings.repositories:
            raise ResilienceError(
                f"region {region} has no repository; there is one in {', '.join(settings.repositories) or 'no region'}"
            )
        repository = Repository(
            name=region,
            url=settings.repositories[region].restic,
            password=settings.secret(f"restic_{region}"),
            username=settings.restic_user,
            http_password=settings.secret(f"restic_http_{region}"),
            ca_file=settings.ca_file,
            client_cert=settings.cert_file,
            client_key=settings.key_file,
        )
        return Restic(repository, binary=settings.restic_program, cache_folder=str(settings.folder("cache") / region))

    def put(self, folder: Path, tags: t.Sequence[str]) -> tuple[str, int, list[str], list[str]]:
        """Store a folder in each region's repository, the own one first.

        One that can't be reached does not stop the others.

        :returns: the snapshot's id in the first repository that took it, bytes, regions, and what went wrong elsewhere.
        :raises ResilienceError: no repository took it.
        """
        settings = self._settings
        order = sorted(settings.repositories, key=lambda region: (region != settings.region, region))
        made, taken, trouble = None, [], []
        for region in order:
            try:
                stored = self.of(region).backup([str(folder)], tags=tags, host=settings.host)
            except ResilienceError as exc:
                _log.error("region %s did not take it: %s", region, exc)
                trouble.append(f"region {region} did not take it: {exc}")
                continue
            taken.append(region)
            made = made or stored
        if made is None:
            raise ResilienceError(f"no repository took the backup: {'; '.join(trouble)}")
        return made.id[:SHORT], made.bytes, taken, trouble

    def found(self, region: str, tags: t.Sequence[str]) -> list[Found]:
        """Snapshots in a region's repository, the oldest first."""
        return [
            Found(one.id[:SHORT], region, one.time.timestamp(), extra={"paths": list(one.paths)})
            for one in self.of(region).snapshots(tags=tags)
        ]

    def fetch(self, found: Found, into: Path) -> None:
        """Bring the files of a snapshot into a folder, without the path that they had."""
        restic = self.of(found.region)
        raw = into.with_name(f"{into.name}.raw")
        shutil.rmtree(raw, ignore_errors=True)
        raw.mkdir(mode=0o700, parents=True)
        try:
            restic.restore(found.id, str(raw))
            (path,) = found.extra.get("paths") or ["/"]
            source = Path(restored_path(str(raw), path))
            if not source.is_dir():
                raise ResilienceError(
                    f"the snapshot {found.id} in region {found.region}'s repository has no folder {path}; it was not "
                    "made by shannon-backup"
                )
            into.mkdir(mode=0o700, parents=True, exist_ok=True)
            for one in source.iterdir():
                target = into / one.name
                if target.is_dir():
                    shutil.rmtree(target)
                one.replace(target)
        finally:
            shutil.rmtree(raw, ignore_errors=True)


class FilesKind(abc.ABC):
    """What these kinds share; each says how to fill a folder, and how to prove one."""

    name = ""
    per_cell = False
    each_region = False

    def __init__(self, settings: Settings, repositories: Repositories) -> None:
        self.settings = settings
        self.repositories = repositories

    @abc.abstractmethod
    def fill(self, cell: Cell | None, folder: Path) -> dict[str, t.Any]:
        """Write the backup and its manifest into a folder; returns the manifest."""

    @abc.abstractmethod
    def prove(self, cell: Cell | None, folder: Path) -> contextlib.AbstractContextManager[Sandbox]:
        """Restore such a folder into a scratch instance, and compare it with its manifest."""

    def summary(self, manifest: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """The few figures of a manifest that the registry's record has."""
        return {
            name: value for name, value in manifest.items() if isinstance(value, (int, float, str)) and name != "kind"
        }

    def tags(self, cell: Cell | None) -> list[str]:
        """By which the repositories find them again."""
        return [f"kind={self.name}", f"cell={cell.name if cell else '_'}"]

    def backup(self, cell: Cell | None, type_: str, staging: Path) -> Made:
        manifest = self.fill(cell, staging)
        written = staging / MANIFEST
        if not written.exists():
            written.write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        tags = [*self.tags(cell), f"region={self.settings.region}"]
        id_, size, regions, trouble = self.repositories.put(staging, tags)
        return Made(id_, size, regions, manifest, trouble, self.summary(manifest))

    def found(self, cell: Cell | None, region: str) -> list[Found]:
        return self.repositories.found(region, self.tags(cell))

    def fetch(self, cell: Cell | None, found: Found, into: Path) -> dict[str, t.Any]:
        self.repositories.fetch(found, into)
        return read_manifest(into, found)

    @contextlib.contextmanager
    def sandbox(self, cell: Cell | None, found: Found, folder: Path, to: str) -> t.Iterator[Sandbox]:
        files = folder / "files"
        manifest = self.fetch(cell, found, files)
        with self.prove(cell, files) as sandbox:
            yield Sandbox(sandbox.differences, {**self.summary(manifest), **sandbox.facts}, sandbox.where)


def read_manifest(folder: Path, found: Found) -> dict[str, t.Any]:
    """The manifest that came with a backup."""
    try:
        return t.cast("dict[str, t.Any]", json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError) as exc:
        raise ResilienceError(
            f"the backup {found.id} in region {found.region}'s repository has no readable {MANIFEST}: {exc}. Nothing "
            "says what is in it; take an older one (shannon-backup list)."
        ) from exc
