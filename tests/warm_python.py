"""A Python for tests that start many programs: each is forked from one process that has imported torch and refseg.

A program of a test spends four seconds of a core on its imports, and so does each process that a launcher starts. What
`python()` gives is called like Python (`-m`, `-c`, a script), takes its environment and folder from the caller, and
passes on output, SIGTERM, SIGINT and the exit code. The program's parent is the server, not the caller: tests of what
happens when a launcher dies, of imports and of warnings start `sys.executable` itself.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path
from typing import Any

import fsspec

_IMPORTED = (
    "accelerate.commands.config",
    "accelerate.utils",
    "pipelines.build",
    "refseg.apps.predict",
    "refseg.cli",
    "refseg.evaluation.evaluate",
    "refseg.train",
    "refseg.training.trainer",
    "torch.distributed.run",
)
_CALLER = """#!{python} -IS
import json, os, signal, socket, struct, sys

def pass_on(number, frame):
    server.sendall(bytes([number]))

server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, pass_on)
socket.send_fds(server, [struct.pack("<I", len(call)) + call], [0, 1, 2])
code = struct.unpack("<i", server.recv(4))[0]
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@functools.cache
def python() -> str:
    """Path of the executable; the first call starts the server, which ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="warm-python-")
    address = f"{folder.name}/socket"
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    server = subprocess.Popen([sys.executable, __file__, address], env=environ, stdin=subprocess.PIPE)
    atexit.register(folder.cleanup)
    atexit.register(server.kill)
    caller = Path(folder.name, "python")
    caller.write_text(_CALLER.format(python=sys.executable, address=address))
    caller.chmod(0o755)
    while not Path(address).exists():
        assert server.poll() is None, "the server of warm Pythons ended"
        signal.sigtimedwait([], 0.05)
    return str(caller)


class _Server:
    """Forks a program for each connection, and kills it when the connection ends."""

    def __init__(self, address: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{address}.part")
        self.listener.listen(64)
        Path(f"{address}.part").rename(address)
        self.programs: dict[int, socket.socket] = {}
        self.woken, waking = os.pipe()
        os.set_blocking(self.woken, False)
        os.set_blocking(waking, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector = selectors.DefaultSelector()
        for file in (self.listener, self.woken, sys.stdin):
            self.selector.register(file, selectors.EVENT_READ)

    def serve(self) -> list[Any]:
        """Wait for calls; returns in each forked program, with what to run, and nowhere else."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    if (call := self._accept()) is not None:
                        return call
                elif key.fileobj is sys.stdin:  # the process that started the server has ended
                    for program in self.programs:
                        os.kill(program, signal.SIGKILL)
                    os._exit(0)
                elif key.fileobj == self.woken:
                    os.read(self.woken, 4096)
                    self._reap()
                else:
                    self._pass_on(key.data, key.fileobj)

    def _accept(self) -> list[Any] | None:
        caller, _ = self.listener.accept()
        data, files, _, _ = socket.recv_fds(caller, 1 << 20, 3)
        (length,) = struct.unpack("<I", data[:4])
        while len(data) < 4 + length:
            data += caller.recv(1 << 20)
        program = os.fork()
        if program == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # where a shell had it ignored in the background
            self.selector.close()
            os.setsid()
            for target, file in enumerate(files):
                os.dup2(file, target)
            os.closerange(3, 4096)
            return list(json.loads(data[4:]))
        for file in files:
            os.close(file)
        self.programs[program] = caller
        self.selector.register(caller, selectors.EVENT_READ, program)
        return None

    def _pass_on(self, program: int, caller: socket.socket) -> None:
        """Send a program the signals that its caller received, and SIGKILL when its caller has ended."""
        numbers = caller.recv(16)
        for number in numbers or [signal.SIGKILL]:
            os.kill(program, number)
        if not numbers:
            self.selector.unregister(caller)

    def _reap(self) -> None:
        while self.programs:
            program, status = os.waitpid(-1, os.WNOHANG)
            if program == 0:
                return
            caller = self.programs.pop(program)
            if caller in self.selector.get_map():
                self.selector.unregister(caller)
                caller.sendall(struct.pack("<i", os.waitstatus_to_exitcode(status)))
            caller.close()


def _exit_code(arguments: list[str]) -> int:
    """Run a program to its end, without the tear-down of the modules, which would copy the server's memory."""
    code: Any = 0
    try:
        _run(arguments)
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            sys.stderr.write(f"{code}\n")
            code = 1
    except BaseException as error:  # noqa: BLE001
        traceback.print_exc()
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return int(code)


def _run(arguments: list[str]) -> None:
    """Do what Python does with its arguments."""
    if arguments[0] == "-u":
        arguments = arguments[1:]
    if arguments[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments[2:]]
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), vars(module))
    else:
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose `data` and `models` would shadow others
    for _name in _IMPORTED:
        importlib.import_module(_name)
    gc.freeze()
    _arguments, _folder, _environ = _Server(sys.argv[1]).serve()
    # Only forked programs reach this line.
    sys.executable = str(Path(sys.argv[1]).with_name("python"))  # a launcher's processes are forked, too
    os.environ.clear()
    os.environ.update(_environ)
    os.chdir(_folder)
    fsspec.config.set_conf_env(fsspec.config.conf)  # as at its import
    _code = _exit_code(_arguments)
    if _code < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), -_code)
    os._exit(_code)
