# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets: from systemd's credentials, which only the service's own processes can read; never from the file."""

from __future__ import annotations

import os
import pathlib


class SecretError(Exception):
    """A secret is missing or empty."""


def secret(name: str) -> str:
    """A secret of the service.

    :param name: for example C(postgres_app): the file C($CREDENTIALS_DIRECTORY/postgres_app) that systemd made, or, for
        tests and development, the environment variable C(SHANNON_SECRET_POSTGRES_APP).
    :raises SecretError: there is none.
    """
    found = optional(name)
    if not found:
        raise SecretError(
            f"the secret {name} is missing: systemd gives it with LoadCredential={name}:FILE (role services does), "
            f"or set SHANNON_SECRET_{name.upper()}"
        )
    return found


def optional(name: str) -> str:
    """A secret that a service can do without; an empty text when there is none."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory:
        path = pathlib.Path(directory) / name
        try:
            return path.read_text(encoding="utf-8").strip("\n")
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as exc:
            raise SecretError(f"the secret {name} can't be read from {path}: {exc}") from exc
    return os.environ.get(f"SHANNON_SECRET_{name.upper()}", "")
