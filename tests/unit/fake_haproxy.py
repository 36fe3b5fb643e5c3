"""A small stand-in for an HAProxy's admin socket."""

from __future__ import annotations

import pathlib
import socketserver
import threading
import typing as t

HEAD = (
    "be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state "
    "srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port "
    "srv_check_addr srv_agent_addr srv_agent_port"
)


class FakeHaproxy:
    """Servers with an admin state (bits as in HAProxy's documentation) and a health check that is on or off."""

    def __init__(self, path: pathlib.Path, servers: t.Sequence[tuple[str, str]]) -> None:
        self.path = str(path)
        self.pid = 100
        self.servers = {server: {"op": 2, "admin": 0, "check": 0x6} for server in servers}
        self.commands: list[str] = []
        self.refusal = ""
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                text = self.rfile.readline().decode().strip()
                outer.commands.append(text)
                self.wfile.write((outer.answer(text) + "\n").encode())

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self._server = Server(self.path, Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def restart(self) -> None:
        """As systemd would: another process, that knows nothing."""
        self.pid += 1
        for state in self.servers.values():
            state.update(op=2, admin=0, check=0x6)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def changes(self) -> list[str]:
        return [command for command in self.commands if not command.startswith("show")]

    def answer(self, text: str) -> str:
        words = text.split()
        if text == "show info":
            return f"Name: HAProxy\nPid: {self.pid}\n"
        if text == "show servers state":
            lines = ["1", f"# {HEAD}"]
            for number, ((backend, name), state) in enumerate(self.servers.items(), start=1):
                row = ["3", backend, str(number), name, "192.0.2.1", state["op"], state["admin"], 1, 1, 5, 6, 3, 4]
                row += [state["check"], 0, 0, 0, "-", 8080, "-", 1, 0, "-", "-", 0]
                lines.append(" ".join(map(str, row)))
            return "\n".join(lines) + "\n"
        if self.refusal:
            return self.refusal
        target = next(word for word in words if "/" in word)
        state = self.servers[t.cast("tuple[str, str]", tuple(target.split("/")))]
        if words[:2] == ["set", "server"] and words[3] == "state":
            state["admin"] = {"ready": 0, "drain": 8, "maint": 1}[words[4]]
        elif words[:2] == ["set", "server"] and words[3] == "health":
            state["op"] = 2
        elif words[1] == "health":
            state["check"] = 0x6 if words[0] == "enable" else 0x2
        return ""
