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
    """Servers with an admin state (bits as in HAProxy's documentation) and a health check that is on or off.

    :ivar map: the one map that it has, at C(map_path); a restart empties it.
    :ivar sessions: requests by backend.
    :ivar streams: open event streams by backend.
    """

    def __init__(self, path: pathlib.Path, servers: t.Sequence[tuple[str, str]]) -> None:
        self.path = str(path)
        self.pid = 100
        self.servers = {server: {"op": 2, "admin": 0, "check": 0x6} for server in servers}
        self.commands: list[str] = []
        self.refusal = ""
        self.map_path = "/etc/shannon/edge/hold.map"
        self.map: dict[str, str] = {}
        self.sessions = {backend: 0 for backend, _name in servers}
        self.streams: dict[str, int] = {}
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
        self.map.clear()
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
        if text == "show stat -1 6 -1":
            # Two servers share what runs, one request waits, and one session's client does not go.
            rows = [
                row
                for name, count in self.sessions.items()
                for row in (
                    f"{name},a_a1,0,0,{max(count - 2, 0)},9",
                    f"{name},a_a2,0,0,{min(count, 1)},9",
                    f"{name},BACKEND,{int(count > 1)},0,{count + 1},9",
                )
            ]
            return "\n".join(["# pxname,svname,qcur,qmax,scur,smax", *rows]) + "\n"
        if text == "show table streams":
            rows = [
                f"0x55d{number}: key={name} use=1 exp=0 shard=0 conn_cur={count}"
                for number, (name, count) in enumerate(self.streams.items())
            ]
            return "\n".join(["# table: streams, type: string, size:128, used:1", *rows]) + "\n"
        if text.startswith("show table"):
            return "No such table\n"
        if words[1] == "map":
            return self.answer_map(words)
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

    def answer_map(self, words: list[str]) -> str:
        """As HAProxy 2.6 says it."""
        verb, _map, path, *entry = words
        if path != self.map_path:
            return "Unknown map identifier. Please use #<id> or <file>.\n"
        if verb == "show":
            return "".join(
                f"0x5615b678c{number:03} {key} {word}\n" for number, (key, word) in enumerate(self.map.items())
            )
        if verb == "set" and entry[0] not in self.map:
            return "entry not found.\n"
        if verb == "add" and entry[0] in self.map:
            raise AssertionError("HAProxy would have two entries of one key")
        if verb == "del":
            return "" if self.map.pop(entry[0], None) else "Key not found.\n"
        self.map[entry[0]] = entry[1]
        return ""
