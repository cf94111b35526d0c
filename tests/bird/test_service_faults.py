"""Each way in which a service goes wrong, by itself: what is asked again, how often, how soon; and when to stop."""

import io
import json
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
from helpers.service import DIM, FAULTS, Peer, truth
from PIL import Image

from bird.errors import TeacherError
from bird.teachers.base import View
from bird.teachers.protocols import KServe
from bird.teachers.service import open_service

QUICK = {"attempts": 9, "longest_wait": 0.02, "timeout": 0.5}
OPENAI, KSERVE = "http+openai://{}/m", "http+kserve://{}/m"
# Of eight images, how many are asked for again. KServe's answers carry no index: there, nothing tells a permuted answer.
AGAIN = {"permuted": 0, "fewer": 1, "doubled": 2, "nan": 1, "dimension": 1}
AGAIN_BY_ROWS = {"nan": 1}


def images(count):
    return [b"\x89PNG" + f"picture {number}".encode() for number in range(count)]


def pictures(count, height=12, width=10):
    """Real ones, as PNG."""
    found = []
    for pixels in np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def pixels_of(image, height, width):
    """The bytes of its float32 pixels, as KServe gets them."""
    view = View((height, width))
    return view.normalise(view(np.asarray(Image.open(io.BytesIO(image))))[None]).numpy().tobytes()


@pytest.mark.parametrize(
    ("spec", "fault"),
    [(OPENAI, fault) for fault in FAULTS]
    + [(KSERVE, fault) for fault in FAULTS if fault not in ("permuted", "doubled")],
)
def test_one_fault_costs_what_it_spoilt(spec, fault):
    asked = images(8)
    with Peer() as peer:
        service = open_service(spec.format(peer.host), **QUICK)
        peer.log.clear()
        peer.script.append(fault)
        vectors, failed = service.embed(asked)
    assert failed == {}
    np.testing.assert_array_equal(vectors, np.stack([truth(image) for image in asked]))
    again = (AGAIN if spec == OPENAI else AGAIN_BY_ROWS).get(fault, 8)
    assert [len(sent) for _, sent in peer.log] == [8, again] if again else [8]


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "permuted"])
def test_the_first_look_survives_each_fault(fault):
    with Peer() as peer:
        peer.script.append(fault)
        service = open_service(OPENAI.format(peer.host), **QUICK)
        assert service.dim == DIM
        assert [len(sent) for _, sent in peer.log] == [8, AGAIN.get(fault, 8), 8], "never an empty request"


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_retry_after_is_waited_for(kind):
    with Peer() as peer:
        service = open_service(OPENAI.format(peer.host), **QUICK)
        peer.log.clear()
        at = datetime.now(UTC) + timedelta(seconds=2)
        peer.after = "0.4" if kind == "seconds" else format_datetime(at, usegmt=True)
        peer.script.append("429 after")
        service.embed(images(2))
    (first, _), (second, _) = peer.log
    assert second - first >= 0.4
    assert kind == "seconds" or time.time() >= int(at.timestamp())


@pytest.mark.parametrize("said", ["soon", "-5", ""])
def test_a_retry_after_that_says_nothing_is_no_obstacle(said):
    with Peer(after=said) as peer:
        service = open_service(OPENAI.format(peer.host), **QUICK)
        peer.script.append("429 after")
        assert service.embed(images(2))[1] == {}


def test_waits_grow():
    with Peer() as peer:
        service = open_service(OPENAI.format(peer.host), attempts=7, longest_wait=0.4, timeout=0.5)
        peer.log.clear()
        peer.script.extend(["503"] * 6)
        service.embed(images(2))
    moments = np.array([moment for moment, _ in peer.log])
    assert len(moments) == 7
    # The k-th wait is drawn from 0 to 0.4 / 16 * 2^k, 0.4 at most.
    assert (np.diff(moments) <= np.minimum(0.025 * 2.0 ** np.arange(6), 0.4) + 0.3).all()


def test_the_rate_limit_holds_for_retries_too():
    with Peer() as peer:
        service = open_service(OPENAI.format(peer.host), per_minute=600, **QUICK)
        peer.script.extend(["503", "reset"])
        service.embed(images(70))
    moments = np.array([moment for moment, _ in peer.log])
    assert len(moments) == 2 + 3 + 2
    assert moments[-1] - moments[0] >= 6 * 0.1 - 0.05, "seen where they arrive, so give or take"


def test_an_outage_ends_the_run_and_blames_no_image():
    with Peer() as peer:
        service = open_service(OPENAI.format(peer.host), attempts=3, longest_wait=0.02, timeout=0.5)
        peer.log.clear()
        peer.status = 503
        with pytest.raises(TeacherError, match=r"no vectors for the eight test images \(status 503\)"):
            service.embed(images(20))
    assert [len(sent) for _, sent in peer.log] == [20] * 3 + [8] * 6


def test_a_service_that_hangs_for_good_ends_the_run():
    with Peer() as peer:
        service = open_service(OPENAI.format(peer.host), attempts=2, longest_wait=0.02, timeout=0.2)
        peer.script.extend(["hang"] * 6)
        with pytest.raises(TeacherError, match="ReadTimeout"):
            service.embed(images(3))


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_refused_image_is_found_without_retries(status):
    asked = images(32)
    with Peer(poison=asked[5], poisoned=status) as peer:
        service = open_service(OPENAI.format(peer.host), **QUICK)
        peer.log.clear()
        vectors, failed = service.embed(asked)
    assert failed == {5: f"the service gave no vector: status {status}"}
    np.testing.assert_array_equal(np.delete(vectors, 5, 0), [truth(image) for image in np.delete(asked, 5)])
    assert len(peer.log) == 1 + 1 + 2 * 5, "the whole, the test images, and two halves at each of five levels"


def test_a_redirect_later_on_is_not_followed():
    with Peer() as peer:
        service = open_service(OPENAI.format(peer.host), **QUICK)
        peer.status = 307
        with pytest.raises(TeacherError, match="a redirect"):
            service.embed(images(2))


def test_a_service_that_lists_other_models_is_refused():
    with Peer(listed=("a", "b")) as peer, pytest.raises(TeacherError, match="lists other models: a, b"):
        open_service(OPENAI.format(peer.host), **QUICK)
    with Peer(listed=("a", "m")) as peer:
        assert open_service(OPENAI.format(peer.host), **QUICK).dim == DIM


@pytest.mark.parametrize(("shape", "size", "sides"), [([-1, 3, 12, 10], None, (12, 10)), ([-1, 3, -1, -1], 7, (7, 7))])
def test_pixels_are_sent_where_the_model_takes_pixels(shape, size, sides):
    asked = pictures(40)
    with Peer(given={"name": "pixels", "datatype": "FP32", "shape": shape}) as peer:
        service = open_service(KSERVE.format(peer.host), image_size=size, **QUICK)
        peer.script.append("503")
        vectors, failed = service.embed(asked)
    assert failed == {}
    sent = [pixels_of(image, *sides) for image in asked]
    assert [image for _, batch in peer.log[-2:] for image in batch] == sent, "exact float32 values, in order"
    np.testing.assert_array_equal(vectors, np.stack([truth(pixels) for pixels in sent]))
    assert service.preprocessing["sent"] == "float32 pixels in [0, 1], RGB"
    assert service.preprocessing["view"]["resize"] == list(sides)


def test_pixels_make_requests_of_bounded_length():
    given = {"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 224, 224]}
    protocol = KServe("m", {"inputs": [given]}, None, None)
    assert protocol.batch == 10
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    length = len(json.dumps(protocol.request([buffer.getvalue()])[1]))
    assert 0.8 * protocol.bytes_sent(1, 0) < length <= protocol.bytes_sent(1, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "x", "datatype": "FP32", "shape": [-1, 224, 224, 3]}, r"FP32 \[-1, 224, 224, 3\]"),
        ({"name": "x", "datatype": "FP32", "shape": [-1, 512]}, r"FP32 \[-1, 512\]"),
        ({"name": "x", "datatype": "UINT8", "shape": [-1, 3, 8, 8]}, "UINT8"),
        (None, "names no input"),
    ],
)
def test_a_model_that_takes_something_else_is_refused(given, said):
    with Peer(given=given) as peer, pytest.raises(TeacherError, match=said):
        open_service(KSERVE.format(peer.host), **QUICK)


def test_the_description_is_asked_for_again():
    with Peer() as peer:
        peer.described = 503
        assert open_service(KSERVE.format(peer.host), **QUICK).dim == DIM
        peer.described = 404
        with pytest.raises(TeacherError, match=r"no description of the model \(status 404\)"):
            open_service(KSERVE.format(peer.host), **QUICK)


def test_an_output_that_is_not_there_is_no_vector():
    with Peer() as peer:
        assert (
            open_service(KSERVE.format(peer.host) + "?output=features", **QUICK).preprocessing["output"] == "features"
        )
        with pytest.raises(TeacherError, match="no output logits"):
            open_service(KSERVE.format(peer.host) + "?output=logits", **QUICK)


def test_a_wish_for_a_long_pause_ends_the_run_at_once():
    with Peer(after="86400") as peer:
        service = open_service(OPENAI.format(peer.host), **QUICK)
        peer.script.append("429 after")
        with pytest.raises(TeacherError, match="left alone for 86,400 seconds"):
            service.embed(images(3))


@pytest.mark.parametrize("address", [OPENAI, KSERVE])
def test_nobody_there_is_told_at_once(address):
    with socket.socket() as bound:  # bound, and never listened to
        bound.bind(("127.0.0.1", 0))
        began = time.monotonic()
        with pytest.raises(TeacherError, match="nobody"):
            open_service(address.format("{}:{}".format(*bound.getsockname())))
        assert time.monotonic() - began < 5
