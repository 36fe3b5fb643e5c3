# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The arguments that every module that talks to the registry takes, and the connection made from them."""

from __future__ import annotations

import typing as t

from .etcd import Endpoint, EtcdClient
from .registry import Registry
from .tls import TlsFiles, client_context

REGISTRY_ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "endpoints": {"type": "list", "elements": "str", "required": True},
    "timeout": {"type": "float", "default": 2.0},
    "ca_file": {"type": "path", "default": "/etc/shannon/pki/ca.crt"},
    "cert_file": {"type": "path", "default": "/etc/shannon/pki/host.crt"},
    "key_file": {"type": "path", "default": "/etc/shannon/pki/host.key", "no_log": False},
}


def connect(params: t.Mapping[str, t.Any]) -> Registry:
    """The registry that a module's parameters name.

    :raises ResilienceError: an endpoint is malformed, or the TLS files can't be used.
    """
    context = client_context(TlsFiles(params["ca_file"], params["cert_file"], params["key_file"]))
    endpoints = [Endpoint.parse(text) for text in params["endpoints"]]
    return Registry(EtcdClient(endpoints, context, params["timeout"]))
