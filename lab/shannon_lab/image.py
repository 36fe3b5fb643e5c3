# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host image: built on a registry's base image where one can be had, and on mmdebstrap's where not."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import tempfile

from . import engine
from .command import LabError, attempt, last_lines, run, say
from .definition import REPOSITORY, Definition

SOURCE = REPOSITORY / "lab"
LOCAL_AUTHORITIES = pathlib.Path("/usr/local/share/ca-certificates")
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
BASE_VARIABLE = "SHANNON_LAB_BASE_IMAGE"


def context_files(authorities: pathlib.Path = LOCAL_AUTHORITIES) -> dict[str, pathlib.Path]:
    """Every file of the build's context: its path there, and where it comes from."""
    files = {"Dockerfile": SOURCE / "Dockerfile"}
    rootfs = SOURCE / "rootfs"
    files |= {f"rootfs/{path.relative_to(rootfs)}": path for path in sorted(rootfs.rglob("*")) if path.is_file()}
    files |= {f"ca-certificates/{path.name}": path for path in sorted(authorities.glob("*.crt"))}
    return files


def context_digest(base: str, user: str, files: dict[str, pathlib.Path]) -> str:
    """What the image is made of, as 12 hexadecimal digits: the base, the user, and each file's path and content."""
    digest = hashlib.sha256(f"{base}\0{user}\0".encode())
    for name in sorted(files):
        content = files[name].read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def exists(reference: str) -> bool:
    return attempt(["docker", "image", "inspect", "--format", "{{.Id}}", reference]).returncode == 0


def _registry_base(base: str, refresh: bool) -> bool:
    """Whether the base image is here, or a registry gave it."""
    if exists(base) and not refresh:
        return True
    say(f"pulling the base image {base}")
    done = attempt(["docker", "pull", "--quiet", base], timeout=180)
    if done.returncode == 0:
        return True
    say(f"no registry gives {base}: {last_lines(done.stderr, 1)}")
    return exists(base)


def fallback_name(definition: Definition) -> str:
    return f"{definition.image.name}-base:{definition.image.fallback_release}"


def _fallback_base(definition: Definition, refresh: bool) -> str:
    """A base image made from the distribution's packages; needs no registry."""
    release, reference = definition.image.fallback_release, fallback_name(definition)
    if exists(reference) and not refresh:
        return reference
    if not shutil.which("mmdebstrap"):
        if not engine.is_root() or engine.distribution() not in ("debian", "ubuntu"):
            raise LabError(
                f"no base image: {BASE_VARIABLE} names none that can be pulled, and mmdebstrap, which makes one "
                "without a registry, is not installed (Debian, Ubuntu: apt-get install mmdebstrap)"
            )
        say("installing mmdebstrap from the distribution")
        keyring = ["debian-archive-keyring"] if engine.distribution() != "debian" else []
        engine.apt_install(["mmdebstrap", *keyring], "install mmdebstrap")
    say(f"making a base image of Debian {release} with mmdebstrap (about half a minute)")
    cache = REPOSITORY / ".cache"
    cache.mkdir(exist_ok=True)
    mirror = os.environ.get("SHANNON_LAB_MIRROR")
    with tempfile.TemporaryDirectory(dir=cache, prefix="mmdebstrap-") as directory:
        archive = str(pathlib.Path(directory) / "base.tar")
        run(
            ["mmdebstrap", "--variant=minbase", "--include=ca-certificates", release, archive]
            # Left out, mmdebstrap takes the release's usual mirror.
            + ([mirror] if mirror else []),
            what=f"make a base image of Debian {release}",
            timeout=900,
        )
        engine.docker("import", archive, reference, what="import the base image", timeout=300)
    return reference


def _build(definition: Definition, base: str, tag: str, files: dict[str, pathlib.Path], refresh: bool) -> None:
    say(f"building {tag} on {base} (one or two minutes)")
    proxies = [argument for name in PROXIES if os.environ.get(name) for argument in ("--build-arg", name)]
    with tempfile.TemporaryDirectory(prefix="shannon-lab-image-") as directory:
        context = pathlib.Path(directory)
        (context / "ca-certificates").mkdir()
        for name, source in files.items():
            target = context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o644)
        for path in [context, *context.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
        argv = ["docker", "build", "--tag", tag, *proxies]
        argv += ["--build-arg", f"BASE_IMAGE={base}", "--build-arg", f"LAB_USER={definition.user}"]
        argv += ["--label", "shannon.lab.image=1", *(["--no-cache"] if refresh else []), directory]
        # The classic builder is in every Docker; buildx is a plugin that distributions do not ship.
        done = attempt(argv, timeout=1200, environment={"DOCKER_BUILDKIT": "0"})
        if done.returncode != 0:
            log = REPOSITORY / ".cache" / "image-build.log"
            log.parent.mkdir(exist_ok=True)
            log.write_text(f"{done.stdout}\n{done.stderr}", encoding="utf-8")
            raise LabError(f"cannot build the image {tag}; the end of {log}:\n{last_lines(done.stdout)}")


def _alias(definition: Definition, tag: str) -> None:
    """Give the image its second name, <name>:<code name of its distribution>, which molecule's platforms use."""
    script = '. /etc/os-release && echo "$VERSION_CODENAME"'
    code_name = run(
        ["docker", "run", "--rm", "--network", "none", "--entrypoint", "/bin/sh", tag, "-c", script],
        what=f"read the distribution of {tag}",
    ).strip()
    alias = f"{definition.image.name}:{code_name}"
    engine.docker("tag", tag, alias, what=f"tag the image {alias}")
    say(f"the host image is {tag}, also called {alias}")


def ensure(definition: Definition, refresh: bool = False) -> str:
    """Return the name of the host image; build it when it is not there, or when a fresh one is asked for."""
    files = context_files()
    base = os.environ.get(BASE_VARIABLE) or definition.image.base

    def tag_on(source: str) -> str:
        return f"{definition.image.name}:{context_digest(source, definition.user, files)}"

    if base and exists(tag_on(base)) and not refresh:
        return tag_on(base)
    if base and _registry_base(base, refresh):
        source = base
    else:
        source = fallback_name(definition)
        if exists(tag_on(source)) and not refresh:
            return tag_on(source)
        source = _fallback_base(definition, refresh)
    _build(definition, source, tag_on(source), files, refresh)
    _alias(definition, tag_on(source))
    return tag_on(source)
