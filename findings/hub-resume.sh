#!/usr/bin/env bash
# huggingface_hub: which interrupted downloads go on where they stopped.
#
# Guessed before: both a cut connection and a killed process go on by a Range request, as they did in earlier releases.
# Came out (2.4.0): a cut connection goes on from the last multiple of 10 MiB, so a file under 10 MiB begins anew. A killed
# process leaves a partial file under a name of its own; the next one begins anew, and the partial file stays for good.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check huggingface_hub==2.4.0
cat >"$folder/hub.py" <<'PY'
import hashlib, os, re, signal, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DATA, COMMIT = os.urandom(14_000_000), "0" * 40
ranges, cut, wait, held = [], [], [], threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("range") or "bytes=0-")[1])
        body = DATA[start:] if "/resolve/" in self.path else b"{}"
        self.send_response(206 if start else 200)
        self.send_header("etag", hashlib.sha256(DATA).hexdigest())
        self.send_header("x-repo-commit", COMMIT)
        self.send_header("content-length", str(len(body)))
        if start:
            self.send_header("content-range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if "/resolve/" not in self.path:
            self.wfile.write(body)
            return
        ranges.append(self.headers.get("range"))
        if cut:
            self.wfile.write(body[: cut.pop()])
            self.close_connection = True
        elif wait:
            self.wfile.write(body[: wait.pop()])
            self.wfile.flush()
            held.set()
            threading.Event().wait(60)
        else:
            self.wfile.write(body)


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
server.handle_error = lambda *_: None
threading.Thread(target=server.serve_forever, daemon=True).start()
FETCH = "from huggingface_hub import hf_hub_download as get; get('someone/model', 'weights.bin')"


def start(home):
    address = f"http://127.0.0.1:{server.server_address[1]}"
    environment = {"HF_ENDPOINT": address, "HF_HOME": home, "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    ranges.clear()
    return subprocess.Popen([sys.executable, "-c", FETCH], env=environment, stderr=subprocess.DEVNULL)


def asked(home):
    assert start(home).wait() == 0
    return [*ranges]


cut.append(12_000_000)
late = asked("late")
cut.append(5_000_000)
early = asked("early")
wait.append(12_000_000)
process = start("killed")
held.wait(60)
process.send_signal(signal.SIGKILL)
process.wait()
killed = asked("killed")
left = len([*Path("killed").rglob("*.incomplete")])
print("connection cut at 12 MB of 14: asked for", late)
print("connection cut at 5 MB of 14:  asked for", early)
print("process killed at 12 MB of 14: the next one asked for", killed, "and", left, "partial file is left")
assert late == [None, "bytes=10485760-"]
assert early == [None, None]
assert killed == [None]
assert left == 1
PY
cd "$folder" && "$folder/venv/bin/python" hub.py
