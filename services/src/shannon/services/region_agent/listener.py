# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's listener: what other hosts of the topology may ask it, over mutual TLS."""

from __future__ import annotations

import json
import ssl
import threading
import typing as t
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from shannon.resilience.errors import ResilienceError
from shannon.services.common import logs

from .settings import Settings

_log = logs.get(__name__)
#: A question and the address that it came from, to a status and an answer.
Answerer = t.Callable[[dict[str, t.Any], str], "tuple[int, dict[str, t.Any]]"]
MAX_BODY = 4096


class Listener:
    """Answers questions on the agent's port.

    :param answerers: by path. A GET gives its answerer an empty question.
    """

    def __init__(self, settings: Settings, answerers: t.Mapping[str, Answerer]) -> None:
        self._settings = settings
        self._answerers = dict(answerers)
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen in the background.

        :raises ResilienceError: the address or the certificate can't be used.
        """
        settings, answerers = self._settings, self._answerers

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                try:
                    size = int(self.headers.get("Content-Length") or 0)
                    body = json.loads(self.rfile.read(size)) if 0 < size <= MAX_BODY else None
                except ValueError:
                    body = None
                if isinstance(body, dict):
                    self._answer(body)
                else:
                    self._send(400, {"reason": f"expected a JSON object of at most {MAX_BODY} bytes"})

            def _answer(self, question: dict[str, t.Any]) -> None:
                answerer = answerers.get(self.path)
                if answerer is None:
                    self._send(404, {"reason": f"known are {', '.join(sorted(answerers))}"})
                    return
                try:
                    self._send(*answerer(question, str(self.client_address[0])))
                except (ResilienceError, KeyError, TypeError, ValueError) as exc:
                    self._send(400, {"reason": f"{type(exc).__name__}: {exc}"})

            def _send(self, status: int, answer: dict[str, t.Any]) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: t.Any) -> None:
                _log.debug(format, *arguments)

        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=settings.ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_cert_chain(settings.cert_file, settings.key_file)
            server = _Server((settings.address, settings.port), Handler, context)
        except (OSError, ssl.SSLError) as exc:
            raise ResilienceError(f"can't listen on {settings.address}:{settings.port}: {exc}") from exc
        self._server = server
        threading.Thread(target=server.serve_forever, daemon=True, name="listener").start()

    def stop(self) -> None:
        """Stop listening."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: type, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(address, handler)

    def finish_request(self, request: t.Any, client_address: t.Any) -> None:
        # The handshake is the client's thread's work: one that dawdles must not hold up the others.
        request.settimeout(5)
        try:
            with self._context.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)
        except (OSError, ssl.SSLError) as exc:
            _log.debug("a connection from %s failed: %s", client_address, exc)
