# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules that can be run: the built-in tools, and what was uploaded, by the SHA-256 of its bytes.

Uploaded modules are kept on disk as they came, since PostgreSQL is where they belong to (the orchestrator gives them
anew when this host lacks one); compiled ones are kept in memory, those that were used last.
"""

from __future__ import annotations

import collections
import hashlib
import os
import pathlib
import re
import tempfile
import threading
from dataclasses import dataclass

import wasmtime

from shannon.services.common import logs

from .sandbox import InvalidModuleError, Sandbox

_log = logs.get(__name__)
_TOOLS = pathlib.Path(__file__).parent / "tools"
_PRELUDE = "io"
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
#: What the built-in tools do; each is tools/<name>.wat.
BUILT_IN = {
    "echo": "Gives back its input.",
    "word_count": 'Counts words, characters and lines of a text, a JSON string or {"text": ...}.',
    "checksum": "CRC-32 and length of its input.",
    "sum": "Adds up the whole numbers in its input.",
}


class UnknownModuleError(Exception):
    """This host does not have the module."""


@dataclass(frozen=True)
class Stored:
    """A module that was stored."""

    sha256: str
    size: int


class Modules:
    """All modules of this host.

    :param directory: where uploaded ones are kept.
    :param kept: how many compiled ones, and how many uploaded ones on disk, are kept.
    """

    def __init__(self, sandbox: Sandbox, directory: str, kept: int) -> None:
        self._sandbox = sandbox
        self._directory = pathlib.Path(directory) / "modules"
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._kept = kept
        self._lock = threading.Lock()
        self._compiled: collections.OrderedDict[str, wasmtime.Module] = collections.OrderedDict()
        prelude = (_TOOLS / f"{_PRELUDE}.wat").read_text(encoding="utf-8")
        self._built_in = {
            name: sandbox.compile(bytes(wasmtime.wat2wasm(f"(module\n{prelude}\n{text})")))
            for name in BUILT_IN
            for text in ((_TOOLS / f"{name}.wat").read_text(encoding="utf-8"),)
        }

    def built_in(self, name: str) -> wasmtime.Module:
        """A built-in tool.

        :raises UnknownModuleError: there is none of that name.
        """
        try:
            return self._built_in[name]
        except KeyError:
            raise UnknownModuleError(f"there is no tool {name!r}; there are {', '.join(BUILT_IN)}") from None

    def get(self, sha256: str) -> wasmtime.Module:
        """An uploaded module, compiled.

        :raises UnknownModuleError: it was never stored here, or is not kept any more.
        :raises InvalidModuleError: what is on disk can't be run by this engine any more.
        """
        if not _SHA256.match(sha256):
            raise UnknownModuleError("a module is named by the SHA-256 of its bytes, 64 hexadecimal digits")
        with self._lock:
            found = self._compiled.get(sha256)
            if found is not None:
                self._compiled.move_to_end(sha256)
                return found
        path = self._directory / f"{sha256}.wasm"
        try:
            content = path.read_bytes()
        except OSError:
            raise UnknownModuleError("module unknown") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            _log.error("%s does not hold what its name says; it is removed", path)
            path.unlink(missing_ok=True)
            raise UnknownModuleError("module unknown")
        os.utime(path)
        return self._keep(sha256, self._sandbox.compile(content))

    def store(self, content: bytes) -> Stored:
        """Keep an uploaded module, once it is known that it can be run.

        :raises InvalidModuleError: it can't.
        :raises OSError: the disk does not take it.
        """
        module = self._sandbox.compile(content)
        sha256 = hashlib.sha256(content).hexdigest()
        path = self._directory / f"{sha256}.wasm"
        if not path.exists():
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".new-", delete=False) as fresh:
                try:
                    fresh.write(content)
                    fresh.flush()
                    os.replace(fresh.name, path)
                except OSError:
                    pathlib.Path(fresh.name).unlink(missing_ok=True)
                    raise
        self._keep(sha256, module)
        self._forget_oldest(path)
        return Stored(sha256, len(content))

    def _keep(self, sha256: str, module: wasmtime.Module) -> wasmtime.Module:
        with self._lock:
            self._compiled[sha256] = module
            self._compiled.move_to_end(sha256)
            while len(self._compiled) > self._kept:
                self._compiled.popitem(last=False)
        return module

    def _forget_oldest(self, newest: pathlib.Path) -> None:
        aged = []
        for path in self._directory.glob("*.wasm"):
            try:
                aged.append((path.stat().st_mtime, path))
            except OSError:
                continue
        for _age, path in sorted(aged)[: -self._kept]:
            if path != newest:
                path.unlink(missing_ok=True)


__all__ = ["BUILT_IN", "InvalidModuleError", "Modules", "Stored", "UnknownModuleError"]
