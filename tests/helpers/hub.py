"""A hub of models on this machine: what the hub's clients ask for, over HTTP on loopback, with faults on demand."""

import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

RESOLVE = re.compile(r"^/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)$")
ABOUT = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/?]+))?")
MISSING = {"repo": "RepoNotFound", "revision": "RevisionNotFound", "file": "EntryNotFound"}


class Hub:
    """Repositories of files, each with commits. `log` has (method, file or path, range, status) of every request. A file
    named in `cut` ends after so many bytes, once; one named in `hold` sends so many and then waits, until it is let go."""

    def __init__(self):
        self.commits, self.heads, self.private, self.log, self.cut, self.hold = {}, {}, {}, [], {}, {}
        self.held, self.go_on = threading.Event(), threading.Event()

    def __enter__(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.answer(self)

            def do_GET(self):
                hub.answer(self)

            def do_POST(self):
                self.body = (
                    b"".join(self.chunks())
                    if "chunked" in self.headers.get("transfer-encoding", "")
                    else (self.rfile.read(int(self.headers.get("content-length", 0))))
                )
                hub.answer(self)

            do_PUT = do_POST

            def chunks(self):
                while size := int(self.rfile.readline(), 16):
                    yield self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # clients are killed on purpose
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        return self

    def __exit__(self, *_):
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()

    def push(self, repo, folder):
        """A commit of the files in `folder`, the new head of the branch main; returns its name."""
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}
        told = b"".join(name.encode() + hashlib.sha256(data).digest() for name, data in files.items())
        commit = hashlib.sha1(told).hexdigest()
        self.commits.setdefault(repo, {})[commit] = files
        self.heads[repo] = commit
        return commit

    def environment(self, home, **more):
        """Of a process that takes this for the hub and keeps its cache in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return {**kept, **own, "no_proxy": "127.0.0.1", **more}

    def asked(self, file):
        """The (method, range, status) of the requests for a file."""
        return [(method, wanted, status) for method, name, wanted, status in self.log if name == file]

    def answer(self, http):
        """One request."""
        path = unquote(urlsplit(http.path).path)
        if found := RESOLVE.match(path):
            return self.file(http, **found.groupdict())
        if found := ABOUT.match(path):
            return self.about(http, path, **found.groupdict())
        return self.reply(http, path, 404, b"{}")

    def look_up(self, repo, revision):
        """(commit, None), or (None, what is missing)."""
        if repo not in self.commits:
            return None, "repo"
        commit = self.heads[repo] if revision in (None, "main") else revision
        return (commit, None) if commit in self.commits[repo] else (None, "revision")

    def about(self, http, path, repo, revision, what):
        commit, missing = self.look_up(repo, revision)
        if missing:
            return self.refuse(http, path, missing)
        files = self.commits[repo][commit]
        told = {"id": repo, "modelId": repo, "sha": commit, "private": self.private.get(repo, False), "tags": []}
        told["siblings"] = [{"rfilename": name} for name in files]
        if what == "tree":
            told = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
        return self.reply(http, path, 200, json.dumps(told).encode(), {"content-type": "application/json"})

    def file(self, http, repo, revision, file):
        commit, missing = self.look_up(repo, revision)
        if missing is None and file not in self.commits[repo][commit]:
            missing = "file"
        if missing:
            return self.refuse(http, file, missing, {"x-repo-commit": commit} if commit else {})
        data = self.commits[repo][commit][file]
        tag = hashlib.sha256(data).hexdigest()
        headers = {"etag": f'"{tag}"', "x-repo-commit": commit, "accept-ranges": "bytes"}
        wanted = http.headers.get("range")
        if http.command == "HEAD" or wanted is None:
            return self.reply(http, file, 200, data, headers)
        start = int(re.match(r"bytes=(\d+)-", wanted)[1])
        headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.reply(http, file, 206, data[start:], headers)

    def refuse(self, http, name, missing, headers=()):
        told = {"x-error-code": MISSING[missing], "x-error-message": f"no such {missing}"}
        return self.reply(http, name, 404, b"", {**told, **dict(headers)})

    def reply(self, http, name, status, body, headers=()):
        self.log.append((http.command, name, http.headers.get("range"), status))
        http.send_response(status)
        for key, value in {**dict(headers), "content-length": len(body)}.items():
            http.send_header(key, str(value))
        http.end_headers()
        if http.command == "HEAD":
            return
        if http.command == "GET" and name in self.cut:
            body = body[: self.cut.pop(name)]
            http.close_connection = True
        elif http.command == "GET" and name in self.hold:
            first = self.hold.pop(name)
            http.wfile.write(body[:first])
            http.wfile.flush()
            self.held.set()
            self.go_on.wait(120)
            body = body[first:]
        http.wfile.write(body)
