# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of a WebAssembly module, and its bounds.

A module gets its input on standard input, and what it writes to standard output is the result. It sees no files, no
network, no environment and no arguments. Fuel bounds what it computes, an epoch deadline how long it may take, a
limiter how much memory it may have, and the collector of its output how much it may write.
"""

from __future__ import annotations

import enum
import errno
import importlib.metadata
import json
import os
import tempfile
import threading
import time
import typing as t
from dataclasses import dataclass

import wasmtime

#: Seconds between two ticks of the engine's clock; a run is ended at most two ticks after its time.
TICK = 0.02
#: What every module begins with.
MAGIC = b"\0asm"
#: Bytes of standard error that are kept, for the message of a failed run.
STDERR = 4096
_TABLE_ELEMENTS = 100_000
_STACK = 512 * 2**10


class Reason(str, enum.Enum):
    """Why a run did not succeed."""

    TRAP = "trap"
    FUEL = "out_of_fuel"
    MEMORY = "memory"
    TIMEOUT = "timeout"
    EXIT = "exit"
    OUTPUT = "output_too_large"


class InvalidModuleError(Exception):
    """What was given is no module that can be run here."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one run: instructions, bytes of memory, seconds, bytes of output."""

    fuel: int
    memory: int
    seconds: float
    output: int


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    :ivar output: what it wrote, as JSON: its own, or a JSON string of the text.
    :ivar reason: None when it succeeded.
    """

    output: str
    reason: Reason | None
    error: str
    fuel_used: int
    memory: int
    seconds: float

    @property
    def success(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.reason is None


class _Output:
    """Collects what a run writes, up to a limit."""

    def __init__(self, limit: int, cut: bool = False) -> None:
        self.data = bytearray()
        self.exceeded = False
        self._limit = limit
        self._cut = cut

    def write(self, part: bytes) -> int:
        """Take what was written; a negative number is an error for the writer."""
        room = self._limit - len(self.data)
        self.data += part[:room]
        if len(part) <= room:
            return len(part)
        self.exceeded = True
        return len(part) if self._cut else -errno.EFBIG


class Sandbox:
    """Compiles and runs modules; one for a process, used from several threads."""

    def __init__(self) -> None:
        config = wasmtime.Config()
        config.consume_fuel = True
        config.epoch_interruption = True
        config.max_wasm_stack = _STACK
        config.wasm_threads = False
        # A run's memory is reserved as far as it may grow, not four gigabytes for each.
        config.memory_reservation = 0
        config.memory_guard_size = 65536
        self._engine = wasmtime.Engine(config)
        self._linker = wasmtime.Linker(self._engine)
        self._linker.define_wasi()
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._tick, name="sandbox clock", daemon=True)
        self._clock.start()

    def close(self) -> None:
        """End the clock; runs that are under way are not ended by it any more."""
        self._ended.set()
        self._clock.join()

    def compile(self, wasm: bytes) -> wasmtime.Module:
        """Compile a module.

        :raises InvalidModuleError: it is none, it wants more than WASI gives, or it has nothing to start.
        """
        if not wasm.startswith(MAGIC):
            # The engine would take WebAssembly's text form as well; what is uploaded is stored as it runs.
            raise InvalidModuleError("not a WebAssembly module: it does not begin with the bytes 00 61 73 6d")
        try:
            module = wasmtime.Module(self._engine, wasm)
        except wasmtime.WasmtimeError as exc:
            raise InvalidModuleError(f"not a WebAssembly module that can be run: {_first_line(exc)}") from exc
        foreign = sorted({item.module for item in module.imports} - {"wasi_snapshot_preview1"})
        if foreign:
            raise InvalidModuleError(
                f"the module imports from {', '.join(foreign)}; only wasi_snapshot_preview1 is there"
            )
        kinds = {item.name: item.type for item in module.exports}
        if not isinstance(kinds.get("_start"), wasmtime.FuncType):
            raise InvalidModuleError("the module exports no function _start; build it as a WASI command")
        return module

    def run(self, module: wasmtime.Module, given: str, limits: Limits) -> Outcome:
        """Run a module; whatever it does, this returns within its time.

        :param given: what it reads, JSON by convention.
        """
        output, trouble = _Output(limits.output), _Output(STDERR, cut=True)
        started = time.monotonic()
        with tempfile.NamedTemporaryFile(prefix="shannon-tool-") as stdin:
            stdin.write(given.encode())
            stdin.flush()
            store = wasmtime.Store(self._engine)
            store.set_limits(
                memory_size=limits.memory, table_elements=_TABLE_ELEMENTS, instances=1, tables=16, memories=1
            )
            store.set_fuel(limits.fuel)
            # One tick may be about to come, so the deadline is one further.
            store.set_epoch_deadline(max(1, round(limits.seconds / TICK)) + 1)
            wasi = wasmtime.WasiConfig()
            wasi.argv = ["tool"]
            wasi.stdin_file = stdin.name
            wasi.stdout_custom = output.write
            wasi.stderr_custom = trouble.write
            store.set_wasi(wasi)
            reason, error, memory = self._call(store, module, limits)
        if output.exceeded and (reason is not None or output.data):
            reason, error = Reason.OUTPUT, f"the module wrote more than {limits.output} bytes"
        if reason is not None and trouble.data:
            error += f"; it said: {trouble.data.decode(errors='replace')[-500:].strip()}"
        return Outcome(
            output=_as_json(bytes(output.data)) if reason is None else "",
            reason=reason,
            error=error,
            fuel_used=limits.fuel - store.get_fuel(),
            memory=memory,
            seconds=time.monotonic() - started,
        )

    def _call(self, store: wasmtime.Store, module: wasmtime.Module, limits: Limits) -> tuple[Reason | None, str, int]:
        memory: wasmtime.Memory | None = None
        reason, error = None, ""
        try:
            instance = self._linker.instantiate(store, module)
            exports = instance.exports(store)
            found = exports.get("memory")
            memory = found if isinstance(found, wasmtime.Memory) else None
            t.cast("wasmtime.Func", exports["_start"])(store)
        except wasmtime.ExitTrap as exc:
            if exc.code:
                reason, error = Reason.EXIT, f"the module ended with status {exc.code}"
        except wasmtime.Trap as exc:
            reason, error = self._told(exc, limits)
        except wasmtime.WasmtimeError as exc:
            reason, error = self._refused(exc, limits)
        size = memory.data_len(store) if memory is not None else 0
        if reason is Reason.TRAP and size > 0.9 * limits.memory:
            # Most programs end in a trap of their own when they are given no more memory.
            reason = Reason.MEMORY
            error = f"the module used up its {limits.memory} bytes of memory ({error})"
        return reason, error, size

    @staticmethod
    def _told(exc: wasmtime.Trap, limits: Limits) -> tuple[Reason, str]:
        code = exc.trap_code
        if code is wasmtime.TrapCode.OUT_OF_FUEL:
            return Reason.FUEL, f"the module used up its fuel of {limits.fuel}"
        if code is wasmtime.TrapCode.INTERRUPT:
            return Reason.TIMEOUT, f"the module did not end within {limits.seconds:g} s"
        if code is wasmtime.TrapCode.ALLOCATION_TOO_LARGE:
            return Reason.MEMORY, f"the module wanted more than its {limits.memory} bytes of memory"
        return Reason.TRAP, f"the module trapped: {code.name.lower().replace('_', ' ') if code else _first_line(exc)}"

    @staticmethod
    def _refused(exc: wasmtime.WasmtimeError, limits: Limits) -> tuple[Reason, str]:
        text = str(exc)
        if "memory" in text and "limit" in text:
            return Reason.MEMORY, f"the module wants more than its {limits.memory} bytes of memory to begin with"
        return Reason.TRAP, f"the module could not run: {_first_line(exc)}"

    def _tick(self) -> None:
        while not self._ended.wait(TICK):
            self._engine.increment_epoch()


def _first_line(exc: BaseException) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return "; ".join(lines[:1] + [line for line in lines[1:] if not line[:1].isdigit()][-1:])[:300]


def _as_json(data: bytes) -> str:
    text = data.decode(errors="replace")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text.strip()


def supported() -> str:
    """The engine's version, for the log."""
    return f"wasmtime {importlib.metadata.version('wasmtime')} on {os.uname().machine}"
