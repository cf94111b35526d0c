"""Processes that run `bird`, forked from one that has imported what nearly every command needs.

A command is a process of its own, with its arguments, environment, output and exit code, and dies by its own signals. But
torch and its kin are imported once a test worker, and not once a command: that took five seconds of a processor each.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

SERVE = "from helpers.warm import serve; serve()"
PRELOADED = (
    "numpy",
    "safetensors.torch",
    "sklearn.metrics",
    "torch",
    "torch.nn.attention",
    "torchvision",
    "xxhash",
    "zarr",
)


def serve():
    """In the server: for each line of stdin fork a process that runs the command in it; say its id and how it ended."""
    for name in PRELOADED:
        __import__(name)
    import bird_pipelines.cli.commands

    threads = {Path(f"/proc/self/task/{each}/comm").read_text().strip() for each in os.listdir("/proc/self/task")}
    assert len(threads - {"jemalloc_bg_thd"}) == 1, f"a fork copies one thread alone (jemalloc knows that): {threads}"
    for line in sys.stdin:
        asked = json.loads(line)
        if (pid := os.fork()) == 0:
            become(**asked)
            return bird_pipelines.cli.commands.main()
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


def become(args, env, cwd, out, err):
    """In the fork: be the process that was asked for."""
    for number, path in enumerate((os.devnull, out, err)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0)  # noqa: SIM115  # the server's had lines in its buffer
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["bird", *args]


class Command:
    """A command that runs, with what subprocess.Popen has of it."""

    def __init__(self, args, env, cwd=None):
        self.args, self.returncode = [*map(str, args)], None
        self.folder = tempfile.TemporaryDirectory()
        self.out, self.err = (Path(self.folder.name) / name for name in ("out", "err"))
        self.server = _server()
        asked = {
            "args": self.args,
            "env": env,
            "cwd": str(cwd or Path.cwd()),
            "out": str(self.out),
            "err": str(self.err),
        }
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        self.pid = int(self.server.stdout.readline())
        self._waiting = threading.Thread(target=self._wait, daemon=True)
        self._waiting.start()

    def _wait(self):
        self.returncode = int(self.server.stdout.readline())
        _idle.append(self.server)

    def poll(self):
        """Its exit code; None while it runs."""
        return self.returncode

    def send_signal(self, number):
        """Let it have a signal, if it is still there."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def communicate(self, timeout):
        """Wait for its end; what it said on stdout and stderr. Raises TimeoutExpired, and kills it."""
        self._waiting.join(timeout)
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.args, timeout)
        said = [path.read_text() if path.exists() else "" for path in (self.out, self.err)]
        self.folder.cleanup()
        return said


_idle = []


@atexit.register
def _end():
    """A server ends with its input."""
    while _idle:
        server = _idle.pop()
        server.communicate()


def _server():
    """A server that has no command to wait for."""
    while _idle:
        if (server := _idle.pop()).poll() is None:
            return server
    tests = Path(__file__).resolve().parents[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tests), env.get("PYTHONPATH"))))
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", SERVE], stdin=pipe, stdout=pipe, env=env, text=True
    )  # till the tests end
