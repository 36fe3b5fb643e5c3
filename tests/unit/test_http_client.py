"""The JSON client: what it takes up again of a TLS connection, and what it does not."""

from __future__ import annotations

import http.server
import json
import pathlib
import ssl
import threading
import typing as t

import pytest

from ansible_collections.shannon.resilience.plugins.module_utils.http_client import JsonEndpoint
from ansible_collections.shannon.resilience.plugins.module_utils.pki import Folder, issue, make_authority, utc_now
from ansible_collections.shannon.resilience.plugins.module_utils.tls import TlsFiles, client_context


class Handler(http.server.BaseHTTPRequestHandler):
    """Says whether the connection's handshake was one of the short kind; closes after each answer, as Patroni does."""

    def do_GET(self) -> None:
        body = json.dumps({"resumed": t.cast(ssl.SSLSocket, self.connection).session_reused}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_ignored: t.Any) -> None:
        pass


@pytest.fixture
def files(tmp_path: pathlib.Path) -> TlsFiles:
    folder = Folder.at(str(tmp_path))
    pathlib.Path(folder.cert("a1")).parent.mkdir(parents=True)
    issue(folder, make_authority(folder, utc_now()), "a1", "127.0.0.1", 30, utc_now())
    return TlsFiles(folder.ca_cert, folder.cert("a1"), folder.key("a1"))


class Server:
    def __init__(self, files: TlsFiles, port: int = 0) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.cert, files.key)
        context.load_verify_locations(files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.port = int(self._server.server_address[1])

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_a_tls_session_is_taken_up_again_until_the_server_forgets_it(files: TlsFiles) -> None:
    server = Server(files)
    context = client_context(files)

    def resumed() -> bool:
        # A new endpoint each time, as the agents have it.
        return bool(JsonEndpoint("127.0.0.1", server.port, context, 5.0).expect("GET", "/")["resumed"])

    try:
        assert [resumed(), resumed(), resumed()] == [False, True, True]
        server.stop()
        server = Server(files, server.port)
        assert [resumed(), resumed()] == [False, True]
        context = client_context(files)
        assert not resumed(), "another client's session"
    finally:
        server.stop()
