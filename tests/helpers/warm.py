"""Processes that run `bird`, forked from one that has imported what nearly every command needs.

A command is a process of its own, with its arguments, environment, output and exit code. But torch and its kin are imported
once a test worker, and not once a command: that takes five seconds of a processor.
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
idle = []
"""servers that have no command to wait for"""


def run(args, env, seconds=300):
    """Run `bird ARGS` to its end in a fork; the finished process. One that lasts longer is killed."""
    server = idle.pop() if idle else started()
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        asked = {"args": [*args], "env": env, "cwd": str(Path.cwd()), "out": str(out), "err": str(err)}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        late = threading.Timer(seconds, os.kill, (int(server.stdout.readline()), signal.SIGKILL))
        late.start()
        code = int(server.stdout.readline())
        late.cancel()
        idle.append(server)
        return subprocess.CompletedProcess(args, code, out.read_text(), err.read_text())


def started():
    """A new server."""
    tests = Path(__file__).resolve().parents[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tests), env.get("PYTHONPATH"))))
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", SERVE], stdin=pipe, stdout=pipe, env=env, text=True)


@atexit.register
def end():
    """A server ends with its input."""
    while idle:
        idle.pop().communicate()


def serve():
    """In the server: for each line of stdin fork a process that runs the command in it; say its id and how it ended."""
    for name in PRELOADED:
        __import__(name)
    import bird_pipelines.cli.commands

    threads = {Path(f"/proc/self/task/{each}/comm").read_text().strip() for each in os.listdir("/proc/self/task")}
    assert len(threads - {"jemalloc_bg_thd"}) == 1, f"a fork copies one thread alone (jemalloc knows that): {threads}"
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            become(**json.loads(line))
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
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["bird", *args]
