# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Access to the hosts: ssh, with a key of this lab's own and the host keys checked."""

from __future__ import annotations

import io
import pathlib
import shutil
import tarfile

from . import engine
from .command import LabError, attempt, run
from .definition import Definition, Host


def ensure_tools() -> None:
    """ssh and ssh-keygen, from the distribution when this is root."""
    if shutil.which("ssh") and shutil.which("ssh-keygen"):
        return
    if engine.is_root() and engine.distribution() in ("debian", "ubuntu"):
        engine.apt_install(["openssh-client"], "install openssh-client")
    else:
        raise LabError("ssh and ssh-keygen are not installed; install the OpenSSH client (openssh-client)")


def ensure_key(definition: Definition) -> None:
    """Make the lab's key pair when there is none."""
    definition.state.mkdir(mode=0o700, exist_ok=True)
    if definition.private_key.exists() and public_key_file(definition).exists():
        return
    definition.private_key.unlink(missing_ok=True)
    public_key_file(definition).unlink(missing_ok=True)
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", definition.name, "-f", str(definition.private_key)]
    run(argv, what="make the lab's ssh key")


def public_key_file(definition: Definition) -> pathlib.Path:
    return definition.private_key.with_suffix(".pub")


def inject_key(definition: Definition, host: Host) -> None:
    """Put the lab's public key into a host, running or not."""
    content = public_key_file(definition).read_bytes()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo(f"etc/ssh/authorized_keys/{definition.user}")
        entry.size, entry.mode = len(content), 0o644
        tar.addfile(entry, io.BytesIO(content))
    engine.docker("cp", "-", f"{host.container}:/", what="put the ssh key in", stdin=archive.getvalue())


def write_known_hosts(definition: Definition, keys: dict[str, str]) -> bool:
    """Write the host keys, which came through Docker and so cannot be forged on the way; returns whether new."""
    lines = [f"{definition.host(name).address},{name} {' '.join(key.split()[:2])}" for name, key in keys.items()]
    text = "\n".join(sorted(lines)) + "\n"
    if definition.known_hosts.exists() and definition.known_hosts.read_text(encoding="utf-8") == text:
        return False
    definition.known_hosts.write_text(text, encoding="utf-8")
    return True


def ssh_argv(definition: Definition, host: Host, connect_timeout: int = 5) -> list[str]:
    """The ssh command that reaches a host, without what is to be run there."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": str(connect_timeout),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(definition.known_hosts),
        "LogLevel": "ERROR",
    }
    flags = [argument for name, value in options.items() for argument in ("-o", f"{name}={value}")]
    return ["ssh", "-F", "none", *flags, "-i", str(definition.private_key), f"{definition.user}@{host.address}"]


def answers(definition: Definition, host: Host) -> str:
    """Log in and become root, as Ansible does; returns the reason when that fails, or an empty text."""
    done = attempt([*ssh_argv(definition, host), "sudo -n true"], timeout=15)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit code {done.returncode}")
