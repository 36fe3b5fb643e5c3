# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS material of a host, and the client contexts made from it."""

from __future__ import annotations

import ssl
import typing as t
from dataclasses import dataclass

from .errors import ResilienceError


@dataclass(frozen=True)
class TlsFiles:
    """Paths of the CA certificate and of a client certificate with its key (PEM).

    The defaults are where the C(pki) role puts them on every host.
    """

    ca: str = "/etc/shannon/pki/ca.crt"
    cert: str = "/etc/shannon/pki/host.crt"
    key: str = "/etc/shannon/pki/host.key"


#: The argument spec of the options that the documentation fragment C(tls) describes.
ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "ca_file": {"type": "path", "default": TlsFiles.ca},
    "cert_file": {"type": "path", "default": TlsFiles.cert},
    "key_file": {"type": "path", "default": TlsFiles.key, "no_log": False},
}


def files_of(params: t.Mapping[str, t.Any]) -> TlsFiles:
    """The files that a module with :data:`ARGUMENTS` was told."""
    return TlsFiles(params["ca_file"], params["cert_file"], params["key_file"])


def client_context(files: TlsFiles, check_hostname: bool = True) -> ssl.SSLContext:
    """A client context that trusts only our CA and presents the host's certificate.

    :raises ResilienceError: a file is missing, unreadable or not a certificate; the text names all three paths.
    """
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=files.ca)
        context.load_cert_chain(files.cert, files.key)
    except (OSError, ssl.SSLError) as exc:
        raise ResilienceError(
            f"cannot use the TLS files {files.ca}, {files.cert}, {files.key}: {exc}. "
            "Run site.yml with --tags pki, or run this as a user in the group shannon-tls."
        ) from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = check_hostname
    return context
