"""A service's answers are checked, asked for again where they cannot be used, and never taken for another image's."""

import logging

import numpy as np
import pytest
from helpers.service import DIM, Peer, truth

from bird.errors import TeacherError, UsageError
from bird.teachers.service import canary_images, open_service

QUICK = {"attempts": 9, "longest_wait": 0.02, "timeout": 0.5}
PNG = b"\x89PNG"


def images(count):
    return [PNG + f"picture {number}".encode() for number in range(count)]


@pytest.mark.parametrize(
    "spec", ["http+openai://{}/m", "http://{}?model=m", "http+openai://{}/v1/m", "http+kserve://{}/m"]
)
def test_both_protocols_give_the_true_vectors(spec):
    with Peer() as peer:
        service = open_service(spec.format(peer.host), **QUICK)
        vectors, failed = service.embed(images(70))
    assert (service.dim, failed) == (DIM, {})
    np.testing.assert_allclose(vectors, [truth(image) for image in images(70)], rtol=1e-6)
    assert service.feature_kind == "projection"


def faulty(count, seed):
    """Ask for `count` images while 30 % of the requests go wrong; returns how often each was answered for on average."""
    with Peer(rate=0.3, seed=seed) as peer:
        service = open_service(f"http+openai://{peer.host}/m", **QUICK)
        peer.asked.clear()
        vectors, failed = service.embed(images(count))
    assert failed == {}
    np.testing.assert_array_equal(vectors, np.stack([truth(image) for image in images(count)]))
    return sum(peer.asked.values()) / count


def test_faults_change_nothing():
    assert faulty(300, 1) < 1.5


@pytest.mark.torture
def test_faults_in_full(record_property):
    ratio = faulty(32 * 1400, 2)  # some 2,000 requests
    record_property("19 black-box service, requests", 2000)
    assert ratio <= 1.1, f"each image answered for {ratio:.3f} times"


def test_an_image_that_poisons_its_batch_is_left_out_alone():
    asked = images(40)
    with Peer(poison=asked[17]) as peer:
        service = open_service(f"http+openai://{peer.host}/m", **QUICK)
        vectors, failed = service.embed(asked)
    assert list(failed) == [17]
    assert np.isnan(vectors[17]).all()
    assert np.isfinite(np.delete(vectors, 17, axis=0)).all()


@pytest.mark.parametrize(("status", "said"), [(302, "redirect"), (401, "status 401"), (404, "status 404")])
def test_a_refusal_is_final(status, said):
    with Peer(status=status) as peer, pytest.raises(TeacherError, match=said):
        open_service(f"http+openai://{peer.host}/m", **QUICK)


def test_another_model_behind_the_address_is_noticed():
    with Peer() as peer:
        service = open_service(f"http+openai://{peer.host}/m", **QUICK)
        service.check_canaries()
        before = service.canaries
        peer.salt = 1
        with pytest.raises(TeacherError, match="other vectors"):
            service.check_canaries()
        with pytest.raises(TeacherError, match="other vectors"):
            open_service(f"http+openai://{peer.host}/m", **QUICK).adopt(before)


def test_normalised_vectors_are_not_passed_off_as_penultimate():
    with Peer(unit=True) as peer:
        assert open_service(f"http+openai://{peer.host}/m", **QUICK).feature_kind == "projection_l2"
        with pytest.raises(TeacherError, match="projection_l2"):
            open_service(f"http+openai://{peer.host}/m", kind="penultimate", **QUICK)


def test_the_key_travels_in_the_header_and_nowhere_else(monkeypatch, caplog):
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    caplog.set_level(logging.DEBUG)
    with Peer() as peer:
        service = open_service(f"http+openai://{peer.host}/m", key_env="SOME_KEY", **QUICK)
        assert peer.keys == {"Bearer sk-secret"}
        peer.status = 403
        with pytest.raises(TeacherError) as caught:
            service.embed(images(1))
    told = [str(caught.value), caplog.text, repr(service), service.name, str(service.preprocessing)]
    assert not any("sk-secret" in text for text in told)
    with pytest.raises(UsageError, match="NO_SUCH"):
        open_service("http+openai://h/m", key_env="NO_SUCH")


@pytest.mark.parametrize(
    "spec", ["http://host", "http+grpc://host/m", "http+openai://user:word@host/m", "http+openai:///m"]
)
def test_addresses_that_do_not_fit_are_refused_without_repeating_them(spec):
    with pytest.raises(UsageError) as caught:
        open_service(spec)
    assert "word" not in str(caught.value).replace("password", "")


def test_the_test_images_are_fixed():
    import xxhash

    from bird.images import decode_image

    pixels = b"".join(decode_image(image, "canary").tobytes() for image in canary_images())
    assert xxhash.xxh3_64_hexdigest(pixels) == PINNED


PINNED = "1b7cc327495ed965"
