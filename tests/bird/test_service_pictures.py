"""A service that embeds the text of a data URI is told from one that embeds pictures; the eight test images do not do it."""

import base64
import io
import math
import struct

import numpy as np
import pytest
import torch
from helpers.images import encoded, exif, photo
from helpers.service import Peer, truth
from PIL import Image

from bird.errors import TeacherError, UsageError
from bird.images import decode_image, reads_alike
from bird.teachers.canaries import byte_share, canary_images, twin_images
from bird.teachers.protocols import REQUEST_BYTES
from bird.teachers.service import open_service
from bird_pipelines.precomputing.paid import payload

QUICK = {"attempts": 2, "longest_wait": 0.02, "timeout": 20.0}
OPENAI, KSERVE = "http+openai://{}/m", "http+kserve://{}/m"


# ---- what embeds text: tokens of the URI, in the ways in which text models read and pool ------------------------


def text_of(image):
    """The data URI that a service is sent."""
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def pieces(image, most=None, side="first"):
    """Its characters as token numbers, all of them or the first or last `most`, as tokenizers cut."""
    letters = list(text_of(image).encode())
    return letters if most is None else letters[:most] if side == "first" else letters[-most:]


class Texts:
    """Small real networks of text, with random weights."""

    def __init__(self):
        from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

        torch.manual_seed(0)
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        self.bert = BertModel(BertConfig(vocab_size=256, max_position_embeddings=512, **small)).eval()
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        self.gpt = GPT2Model(
            GPT2Config(vocab_size=256, n_positions=1024, n_embd=32, n_layer=2, n_head=2, **ends)
        ).eval()

    @torch.inference_mode()
    def hidden(self, image, most=512, side="first"):
        return self.bert(torch.tensor(pieces(image, most, side))[None]).last_hidden_state[0].numpy()

    @torch.inference_mode()
    def last_token(self, image, side):
        return self.gpt(torch.tensor(pieces(image, 1024, side))[None]).last_hidden_state[0, -1].numpy()

    @torch.inference_mode()
    def windows(self, image):
        """The whole text, in windows whose vectors are averaged."""
        letters = pieces(image)
        rows = [letters[i : i + 512] for i in range(0, len(letters) - 511, 512)]
        return self.bert(torch.tensor(rows)).last_hidden_state.mean((0, 1)).numpy()


@pytest.fixture(scope="module")
def texts():
    return Texts()


def n_grams(image):
    from sklearn.feature_extraction.text import HashingVectorizer

    hashed = HashingVectorizer(analyzer="char", ngram_range=(1, 3), n_features=256, lowercase=False)
    return hashed.transform([text_of(image)]).toarray()[0].astype(np.float32)


TEXT = {
    "first 512, mean": lambda texts, image: texts.hidden(image).mean(0),
    "first 512, CLS": lambda texts, image: texts.hidden(image)[0],
    "last 512, mean": lambda texts, image: texts.hidden(image, side="last").mean(0),
    "first 64, mean": lambda texts, image: texts.hidden(image, 64).mean(0),
    "first 1024, last token": lambda texts, image: texts.last_token(image, "first"),
    "last 1024, last token": lambda texts, image: texts.last_token(image, "last"),
    "all, in windows": lambda texts, image: texts.windows(image),
    "all, n-grams": lambda texts, image: n_grams(image),
    "the digest": lambda texts, image: truth(b"#" + image),
    "nothing": lambda texts, image: np.ones(8, np.float32),
}


@pytest.mark.parametrize("protocol", [OPENAI, KSERVE])
@pytest.mark.parametrize("how", TEXT)
def test_text_embedders_are_refused(texts, how, protocol):
    if protocol == KSERVE and how not in ("first 512, mean", "the digest", "nothing"):
        return  # the same judgement of the same images
    with (
        Peer(embeds=lambda image: TEXT[how](texts, image)) as peer,
        pytest.raises(TeacherError, match=r"model of images|different pictures") as caught,
    ):
        open_service(protocol.format(peer.host), **QUICK)
    assert "text" in caught.value.fix


# ---- what embeds pictures: any model of images, however poor ----------------------------------------------------


def pixels(image, side, low=0.0, high=1.0):
    picture = Image.open(io.BytesIO(image)).convert("RGB").resize((side, side))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255 * (high - low) + low


@pytest.fixture(scope="module")
def pictures():
    """Small real networks of images with random weights, in fp32 and in bf16, and the plainest features there are."""
    from torchvision.models import shufflenet_v2_x0_5
    from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vit = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).eval()
    clip = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=16)).eval()
    half = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).eval().to(torch.bfloat16)
    net = shufflenet_v2_x0_5(weights=None).eval()
    return {
        "ViT": lambda image: vit(pixels(image, 32)).pooler_output[0],
        "ViT, bf16": lambda image: half(pixels(image, 32).bfloat16()).pooler_output[0].float(),
        "CLIP": lambda image: clip(pixels(image, 32, -1, 1)).pooler_output[0],
        "CNN": lambda image: net(pixels(image, 64))[0],
        "mean colour": lambda image: pixels(image, 64).mean((0, 2, 3)),
        "mean gray, shifted": lambda image: torch.stack([pixels(image, 64).mean(), torch.tensor(1.0)]),
    }


KINDS = ("ViT", "ViT, bf16", "CLIP", "CNN", "mean colour", "mean gray, shifted")


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_images_are_taken_whatever_they_are_worth(pictures, kind):
    def embeds(image):
        with torch.inference_mode():
            return pictures[kind](image).numpy()

    with Peer(embeds=embeds) as peer:
        service = open_service(OPENAI.format(peer.host), **QUICK)
        assert sum(len(sent) for _, sent in peer.log) == 8 + 8
    assert service.dim == len(embeds(canary_images()[0]))


@pytest.mark.parametrize(("noise", "kinds"), [(0.0, KINDS), (0.002, ("ViT", "ViT, bf16", "CLIP", "mean colour"))])
def test_the_two_kinds_are_far_apart(texts, pictures, noise, kinds):
    """A factor of thirty at least between the worst of each, with the noise of half precision on top; that of a network
    whose pictures lie nearer than such noise (the random CNN) nobody can tell."""

    def share(embeds):
        draw = np.random.default_rng(0)
        found = np.array([[embeds(file) for file in pair] for pair in twin_images()], np.float32)
        return byte_share(found + noise * draw.normal(size=found.shape) * np.abs(found).mean())

    with torch.inference_mode():
        worst = max(share(lambda image, kind=kind: pictures[kind](image).numpy()) for kind in kinds)
    refused = [how for how in TEXT if how != "nothing"]
    best = min(share(lambda image, how=how: TEXT[how](texts, image)) for how in refused)
    assert worst < 0.03
    assert best > 1.0


def test_twins_are_one_picture_in_two_files():
    for first, second in twin_images():
        np.testing.assert_array_equal(decode_image(first, "a"), decode_image(second, "b"))
        assert len(first) == len(second)
    firsts = [first for first, _ in twin_images()]
    assert len({decode_image(image, "a").tobytes() for image in firsts}) == 4
    assert len({image[8192:8192] + image[33:8200] for image in firsts}) == 1, (
        "what a tokenizer keeps of them is one text"
    )


def test_a_service_that_repeats_itself_badly_is_refused():
    draw = np.random.default_rng(0)
    with (
        Peer(embeds=lambda image: truth(image) + 0.1 * draw.normal(size=12).astype(np.float32)) as peer,
        pytest.raises(TeacherError, match="two vectors for one picture"),
    ):
        open_service(OPENAI.format(peer.host), **QUICK)


# ---- what is claimed of it --------------------------------------------------------------------------------------


def test_claims_that_do_not_hold_are_refused():
    with Peer() as peer, pytest.raises(TeacherError, match="vectors of length"):
        open_service(OPENAI.format(peer.host), kind="projection_l2", **QUICK)

    def softmax(image):
        found = np.exp(truth(image))
        return found / found.sum()

    with Peer(embeds=softmax) as peer, pytest.raises(TeacherError, match="probabilities"):
        open_service(OPENAI.format(peer.host), kind="logits", **QUICK)


def test_class_scores_are_not_passed_off_as_features():
    with Peer(output="logits") as peer:
        with pytest.raises(TeacherError, match="logits: numbers for classes"):
            open_service(KSERVE.format(peer.host), **QUICK)
        assert open_service(KSERVE.format(peer.host), kind="logits", **QUICK).feature_kind == "logits"
        assert open_service(KSERVE.format(peer.host), output="logits", kind="logits", **QUICK).feature_kind == "logits"


@pytest.mark.parametrize(
    ("spec", "given", "option", "value"),
    [
        (OPENAI, None, "output", "features"),
        (OPENAI, None, "image_size", 64),
        (KSERVE, {"name": "x", "datatype": "BYTES", "shape": [-1, 1]}, "image_size", 64),
        (KSERVE, {"name": "x", "datatype": "FP32", "shape": [-1, 3, 32, 32]}, "image_size", 64),
    ],
)
def test_what_a_service_cannot_honour_is_refused(spec, given, option, value):
    with Peer(given=given) as peer, pytest.raises(UsageError) as caught:
        open_service(spec.format(peer.host), **{option: value}, **QUICK)
    assert f"--{option.replace('_', '-')}" in caught.value.where


# ---- what is sent -----------------------------------------------------------------------------------------------


def with_alpha():
    picture = photo().convert("RGBA")
    picture.putalpha(Image.fromarray(np.linspace(0, 255, 24 * 16).reshape(16, 24).astype(np.uint8)))
    return picture


def sixteen_bits(colour):
    """A PNG of 16 bits a channel (specification, sections 11.2.2 and 9.2: no filter)."""
    from zlib import compress, crc32

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc32(kind + body))

    channels = 3 if colour else 1
    values = np.random.default_rng(0).integers(0, 65536, (8, 8 * channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2 if colour else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compress(rows)) + chunk(b"IEND", b"")


def profile(name):
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def cmyk():
    return encoded(photo().convert("CMYK"), "JPEG", quality=95)


ODD = {
    "turned by EXIF": lambda: encoded(photo(), "JPEG", exif=exif(6)),
    "mirrored by EXIF, PNG": lambda: encoded(photo(), "PNG", exif=exif(2)),
    "alpha": lambda: encoded(with_alpha(), "PNG"),
    "alpha, WebP": lambda: encoded(with_alpha(), "WEBP", lossless=True),
    "a transparent colour": lambda: encoded(photo().quantize(16), "PNG", transparency=3),
    "gray and alpha": lambda: encoded(with_alpha().convert("LA"), "PNG"),
    "16 bits, gray": lambda: sixteen_bits(False),
    "16 bits, colour": lambda: sixteen_bits(True),
    "CMYK": cmyk,
    "another colour space": lambda: encoded(photo(), "JPEG", icc_profile=profile("LAB")),
}
PLAIN = {
    "JPEG": lambda: encoded(photo(), "JPEG", quality=95),
    "gray JPEG": lambda: encoded(photo().convert("L"), "JPEG"),
    "upright by EXIF": lambda: encoded(photo(), "JPEG", exif=exif(1)),
    "sRGB": lambda: encoded(photo(), "JPEG", icc_profile=profile("sRGB")),
    "PNG": lambda: encoded(photo(), "PNG"),
    "palette": lambda: encoded(photo().quantize(16), "PNG"),
    "WebP": lambda: encoded(photo(), "WEBP"),
    "BMP": lambda: encoded(photo(), "BMP"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_others_see_otherwise_is_sent_as_png_of_our_pixels(name):
    data = ODD[name]()
    ours = decode_image(data, name)
    assert not reads_alike(data)
    sent = payload(name, data, ours)
    assert sent != data
    assert reads_alike(sent)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sent))), ours)


@pytest.mark.parametrize("name", PLAIN)
def test_what_all_see_alike_is_sent_as_it_is(name):
    data = PLAIN[name]()
    assert payload(name, data, decode_image(data, name)) == data
    plainly = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(plainly, decode_image(data, name))
    assert payload(name, data, 255 - plainly) != data, "altered after decoding"


def test_requests_are_as_long_as_servers_take():
    """Photos as PNG are large: many a request holds one or two."""
    large, small = b"\x89PNG" + bytes(10_000_000), [b"\x89PNG" + bytes([number]) for number in range(3)]
    with Peer() as peer:
        service = open_service(OPENAI.format(peer.host), **QUICK)
        peer.log.clear()
        asked = [large, small[0], large, small[1], large, small[2]]
        vectors, failed = service.embed(asked)
    assert failed == {}
    np.testing.assert_array_equal(vectors, np.stack([truth(image) for image in asked]))
    lengths = [sum(math.ceil(len(image) / 3) * 4 for image in sent) for _, sent in peer.log]
    assert len(lengths) == 2
    assert max(lengths) <= REQUEST_BYTES
