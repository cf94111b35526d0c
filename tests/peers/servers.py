"""Real embedding servers as processes, and a proxy in front that counts what they are asked."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import xxhash

PATIENCE = 240  # seconds for a server to load torch and a model


def free_port():
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def server(command, ready, log, **environment):
    """A process, once `ready` (an address) answers 200. Its output goes to the file `log`."""
    kept = {"PATH": os.environ["PATH"], "HOME": str(Path(log).parent)}
    limits = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    with Path(log).open("wb") as out:
        process = subprocess.Popen(
            [*map(str, command)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**kept, **limits, **environment},
            cwd=Path(log).parent,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + PATIENCE
            while not answers(ready):
                said = Path(log).read_text(errors="replace")[-3000:]
                assert process.poll() is None, f"the server ended with {process.returncode}:\n{said}"
                assert time.monotonic() < deadline, f"no answer from {ready}:\n{said}"
                time.sleep(0.2)
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def answers(address):
    """Whether an address answers with 200."""
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


class Quiet(ThreadingHTTPServer):
    """Says nothing of clients that were killed."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        """Nothing."""


class Proxy:
    """Hands requests on to `port`, unchanged. `asked` counts the images in them, `requests` the requests for vectors, and
    `statuses` what came back."""

    def __init__(self, port):
        self.port, self.asked, self.requests, self.statuses = port, Counter(), 0, Counter()
        self.lock = threading.Lock()

    def __enter__(self):
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                proxy.hand_on(self, None)

            def do_POST(self):
                proxy.hand_on(self, self.rfile.read(int(self.headers["content-length"])))

        self.server = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def hand_on(self, http, body):
        if body is not None:
            with self.lock:
                self.requests += 1
                self.asked.update(images_in(json.loads(body)))
        headers = {"content-type": "application/json"} if body is not None else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{http.path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status, answer = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, answer = error.code, error.read()
        if body is not None:
            self.statuses[status] += 1
        try:
            http.send_response(status)
            http.send_header("content-type", "application/json")
            http.send_header("content-length", str(len(answer)))
            http.end_headers()
            http.wfile.write(answer)
        except OSError:
            http.close_connection = True  # whoever asked was killed

    def reset(self):
        """Count from nothing."""
        with self.lock:
            self.asked.clear()
            self.statuses.clear()
            self.requests = 0


def images_in(body):
    """A name for each image in a request, of either protocol: equal for equal images."""
    if "input" in body:
        items = [uri.encode() for uri in body["input"]]
    else:
        given = body["inputs"][0]
        count, size = given["shape"][0], len(given["data"]) // given["shape"][0]
        items = [json.dumps(given["data"][row * size : (row + 1) * size]).encode() for row in range(count)]
    return [xxhash.xxh3_128_hexdigest(item) for item in items]
