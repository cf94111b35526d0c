"""A real embeddings service on this machine, with faults on demand: it counts what it is asked, and knows the truth."""

import base64
import io
import json
import random
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import xxhash
from PIL import Image, UnidentifiedImageError

DIM = 12
FAULTS = (
    "429",
    "429 after",
    "503",
    "reset",
    "truncated",
    "fewer",
    "permuted",
    "doubled",
    "nan",
    "dimension",
    "html",
    "hang",
)


def truth(image, salt=0):
    """The vector of an image: a pure function of its pixels, or of its bytes where they are no picture."""
    seed = np.random.SeedSequence([xxhash.xxh3_64_intdigest(seen(image)), salt])
    words = np.random.Philox(seed).random_raw(DIM)
    return (words / 2**63 - 1).astype(np.float32) * 3


def seen(image):
    """What a service sees that opens an image and looks no further: no turning by EXIF, alpha dropped."""
    try:
        picture = Image.open(io.BytesIO(image)).convert("RGB")
    except UnidentifiedImageError:
        return image
    return picture.tobytes() + bytes(picture.size[0] % 251)


ENCODED = {"name": "image", "datatype": "BYTES", "shape": [-1, 1]}


class Peer:
    """`rate` of the requests go wrong, in every way of `FAULTS`; those in `script` do first, in that order. `poisoned` is
    the status for a request with the image `poison`, `status` one for all. `given` is what its KServe model takes and
    `output` what it calls its answer, `listed` the names in its list of models, `embeds` what it makes of an image's bytes
    instead of the truth. `asked` counts images it answered for rightly; `log` has (moment, images) a request; after
    `stop_after` requests it answers nobody."""

    def __init__(
        self,
        rate=0.0,
        seed=0,
        faults=FAULTS,
        unit=False,
        salt=0,
        status=None,
        poison=None,
        poisoned=500,
        given=ENCODED,
        listed=(),
        after="0.01",
        embeds=None,
        output="features",
    ):
        self.rate, self.random, self.faults, self.unit, self.salt = rate, random.Random(seed), faults, unit, salt
        self.status, self.poison, self.poisoned, self.given, self.listed = status, poison, poisoned, given, listed
        self.embeds, self.output = embeds, output
        self.script, self.log, self.described, self.after = deque(), [], 200, after
        self.stop_after = None
        self.asked, self.keys, self.lock = Counter(), set(), threading.Lock()

    def __enter__(self):
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                told = {"name": "m", "inputs": [peer.given] if peer.given else [], "outputs": []}
                if self.path.endswith("/models"):
                    told = {"data": [{"id": name} for name in peer.listed]}
                status, peer.described = peer.described, 200
                reply(self, status, json.dumps(told).encode())

            def do_POST(self):
                peer.handle(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def vector(self, image):
        found = truth(image, self.salt) if self.embeds is None else self.embeds(image)
        return found / np.linalg.norm(found) if self.unit else found

    def handle(self, http):
        body = json.loads(http.rfile.read(int(http.headers["content-length"])))
        self.keys.add(http.headers.get("authorization"))
        kserve = http.path.endswith("/infer")
        images = images_of(body["inputs"][0]) if kserve else [unpack(uri.split(",", 1)[1]) for uri in body["input"]]
        with self.lock:
            self.log.append((time.monotonic(), images))
            drawn = self.random.choice(self.faults) if self.random.random() < self.rate else None
            fault = self.script.popleft() if self.script else drawn
        if self.stop_after is not None and len(self.log) > self.stop_after:
            return reply(http, 503, b"gone")
        if self.status:
            return reply(http, self.status, b"no", {"location": "http://127.0.0.1:9/"})
        if self.poison in images:
            return reply(http, self.poisoned, b"poisoned")
        if fault in ("429", "429 after", "503"):
            headers = {"retry-after": self.after} if fault == "429 after" else {}
            return reply(http, int(fault[:3]), b"busy", headers)
        if fault == "reset":
            return http.connection.close()
        if fault == "hang":
            http.close_connection = True
            return threading.Event().wait(1.0)
        if fault == "html":
            return reply(http, 200, b"<html>welcome</html>", {"content-type": "text/html"})
        vectors = [self.vector(image) for image in images]
        if not kserve:
            data = self.spoil(fault, [{"index": i, "embedding": encode(v)} for i, v in enumerate(vectors)])
            text = json.dumps({"data": data}).encode()
        else:
            vectors = self.spoil_rows(fault, np.stack(vectors))
            output = {
                "name": self.output,
                "datatype": "FP32",
                "shape": [*vectors.shape],
                "data": vectors.ravel().tolist(),
            }
            text = json.dumps({"outputs": [output]}).encode()
        if fault == "truncated":
            return reply(http, 200, text[: len(text) // 2])
        with self.lock:
            self.asked.update(images)
        return reply(http, 200, text)

    def spoil_rows(self, fault, vectors):
        """Of a protocol without an index an image."""
        if fault == "fewer":
            return vectors[:-1]
        if fault == "nan":
            vectors[0] = np.nan
        return np.pad(vectors, ((0, 0), (0, 1))) if fault == "dimension" else vectors

    def spoil(self, fault, data):
        if fault == "fewer":
            return data[:-1]
        if fault == "permuted":
            return self.random.sample(data, len(data))
        if fault == "doubled" and len(data) > 1:
            data[1]["index"] = 0
        if fault == "nan":
            data[0]["embedding"] = encode(np.full(DIM, np.nan, np.float32))
        if fault == "dimension":
            data[0]["embedding"] = encode(np.zeros(DIM + 1, np.float32))
        return data


def images_of(given):
    """The images of a KServe input: their bytes, or those of their float32 pixels."""
    if given["datatype"] == "BYTES":
        return [unpack(text) for text in given["data"]]
    pixels = np.array(given["data"], np.float32).reshape(given["shape"])
    return [image.tobytes() for image in pixels]


def unpack(text):
    return base64.b64decode(text, validate=True)


def encode(vector):
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def reply(http, status, body, headers=()):
    http.send_response(status)
    for name, value in dict(headers).items():
        http.send_header(name, value)
    http.send_header("content-length", str(len(body)))
    http.end_headers()
    http.wfile.write(body)
