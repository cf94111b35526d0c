"""The hub of tests.helpers.hub, which also takes commits: what huggingface_hub asks of one that makes repositories and
branches, takes large files by git-lfs, and knows who may write. It follows what huggingface_hub 2.4 sends."""

import base64
import hashlib
import json
import re
from urllib.parse import unquote, urlsplit

from helpers.hub import Hub

REPO = r"(?P<repo>[^/]+/[^/]+?)"
ROUTES = {
    "create": re.compile(r"^/api/repos/create$"),
    "yaml": re.compile(r"^/api/validate-yaml$"),
    "branch": re.compile(rf"^/api/models/{REPO}/branch/(?P<revision>.+)$"),
    "preupload": re.compile(rf"^/api/models/{REPO}/preupload/(?P<revision>.+)$"),
    "commit": re.compile(rf"^/api/models/{REPO}/commit/(?P<revision>.+)$"),
    "batch": re.compile(rf"^/{REPO}\.git/info/lfs/objects/batch$"),
    "store": re.compile(r"^/lfs/(?P<oid>[0-9a-f]{64})$"),
}
LARGE = (".onnx", ".pt2", ".safetensors")
WRITES, READS = "hf_writes", "hf_reads"


class Uploads(Hub):
    """`private` says of each repository whether it is; `branches` has the heads of others than main. `cards` are those that
    were looked through. While `down` is true, whatever is written is answered with 500."""

    def __init__(self):
        super().__init__()
        self.branches, self.objects, self.cards, self.down = {}, {}, [], False

    def answer(self, http):
        path = unquote(urlsplit(http.path).path)
        if http.command in ("GET", "HEAD"):
            repo = "/".join(path.split("/")[3:5])
            known = http.headers.get("authorization", "").removeprefix("Bearer ") in (WRITES, READS)
            if http.headers.get("authorization") and not known:
                return self.unknown_token(http, path)
            if self.private.get(repo) and not known:
                return self.refuse(http, path, "repo")
            return super().answer(http)
        for what, route in ROUTES.items():
            if found := route.match(path):
                return self.write(http, path, what, **found.groupdict())
        return self.reply(http, path, 404, b"{}")

    def unknown_token(self, http, path):
        return self.reply(http, path, 401, b"{}", {"x-error-message": "Invalid credentials in Authorization header"})

    def write(self, http, path, what, **named):
        token = http.headers.get("authorization", "").removeprefix("Bearer ")
        if what != "store" and token not in (WRITES, READS):
            return self.unknown_token(http, path)
        if what not in ("store", "yaml") and token == READS:
            return self.reply(http, path, 403, b'{"error": "you do not have the rights"}')
        if self.down:
            return self.reply(http, path, 500, b"{}")
        told = getattr(self, what)(http, **named)
        return self.reply(http, path, 200, json.dumps(told).encode(), {"content-type": "application/json"})

    def create(self, http):
        told = json.loads(http.body)
        repo = f"{told['organization']}/{told['name']}"
        self.private[repo] = told.get("visibility") == "private" or told.get("private", False)
        self.commits[repo], self.heads[repo] = {"0" * 40: {}}, "0" * 40
        return {"url": f"{self.endpoint}/{repo}"}

    def yaml(self, http):
        self.cards.append(json.loads(http.body)["content"])
        return {"errors": [], "warnings": []}

    def branch(self, http, repo, revision):
        self.branches.setdefault((repo, revision), self.heads[repo])
        return {}

    def preupload(self, http, repo, revision):
        names = [each["path"] for each in json.loads(http.body)["files"]]
        mode = {True: "lfs", False: "regular"}
        return {
            "files": [{"path": name, "uploadMode": mode[name.endswith(LARGE)], "shouldIgnore": False} for name in names]
        }

    def batch(self, http, repo):
        wanted = json.loads(http.body)["objects"]
        return {
            "objects": [
                each | {"actions": {"upload": {"href": f"{self.endpoint}/lfs/{each['oid']}"}}}
                for each in wanted
                if each["oid"] not in self.objects
            ]
        }

    def store(self, http, oid):
        assert hashlib.sha256(http.body).hexdigest() == oid
        self.objects[oid] = http.body
        return {}

    def commit(self, http, repo, revision):
        lines = [json.loads(line) for line in http.body.splitlines()]
        head = self.heads[repo] if revision == "main" else self.branches[repo, revision]
        files = dict(self.commits[repo][head])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        made = hashlib.sha1(http.body).hexdigest()
        self.commits[repo][made] = files
        if revision == "main":
            self.heads[repo] = made
        else:
            self.branches[repo, revision] = made
        return {"commitUrl": f"{self.endpoint}/{repo}/commit/{made}", "commitOid": made}
