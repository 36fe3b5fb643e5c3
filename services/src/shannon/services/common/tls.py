# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS of listeners and connections, from the host's certificate; between hosts authentication is mutual."""

from __future__ import annotations

import pathlib
import ssl

import grpc

from .deployment import Tls


def server_context(tls: Tls, client_certificates: bool = False) -> ssl.SSLContext:
    """For a listener.

    :param client_certificates: whether clients must show a certificate of our authority.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert, tls.key)
    if client_certificates:
        context.load_verify_locations(tls.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: Tls) -> ssl.SSLContext:
    """For a connection to another host: its name or address is checked against its certificate, ours is shown."""
    context = ssl.create_default_context(cafile=tls.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert, tls.key)
    return context


def grpc_server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """For a gRPC listener: clients must show a certificate of our authority."""
    return grpc.ssl_server_credentials(
        [(pathlib.Path(tls.key).read_bytes(), pathlib.Path(tls.cert).read_bytes())],
        root_certificates=pathlib.Path(tls.ca).read_bytes(),
        require_client_auth=True,
    )


def grpc_channel_credentials(tls: Tls) -> grpc.ChannelCredentials:
    """For a gRPC connection."""
    return grpc.ssl_channel_credentials(
        root_certificates=pathlib.Path(tls.ca).read_bytes(),
        private_key=pathlib.Path(tls.key).read_bytes(),
        certificate_chain=pathlib.Path(tls.cert).read_bytes(),
    )
