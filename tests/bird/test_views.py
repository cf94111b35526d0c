"""Stored views: drawn from raw words, and the same pixels for teacher and student."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bird.errors import DataError
from bird.stored_views import cut, draw_boxes, view_of, view_policy
from bird.student_views import center_view, draw_views
from bird.teachers.base import View

ZEROS = np.zeros(5, np.int32)
SIDE = 24
GOLDEN = [[2, 1, 70, 70, 1], [10, -3, 70, 70, 1], [6, 0, 70, 70, 1]]


def coordinates(height, width):
    """An image that says where its pixels are: rows in red, columns in green, and inside or beyond in blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, height).round()[:, None]
    image[..., 1] = np.linspace(0, 255, width).round()[None]
    image[..., 2] = 255
    return image


def decode(pixels, height, width):
    """Row and column in the source of every pixel of a view (values 0..255), and where no filter reached beyond the image
    or the box: two pixels of the view away from either."""
    beyond = torch.nn.functional.pad((pixels[None, 2] < 254.5).double(), [2] * 4, value=1.0)
    inside = torch.nn.functional.max_pool2d(beyond, 5, stride=1)[0] == 0
    return pixels[0] * (height - 1) / 255, pixels[1] * (width - 1) / 255, inside


def disagreement(one, other, height, width):
    """Mean distance, in source pixels, of what two views show where both are inside the image."""
    rows, columns, inside = decode(one.double(), height, width)
    other_rows, other_columns, other_inside = decode(other.double(), height, width)
    both = inside & other_inside
    assert both.float().mean() > 0.3, "the views hardly show the image"
    return float((rows - other_rows)[both].abs().mean()), float((columns - other_columns)[both].abs().mean())


def expected(box, height, width):
    """Row and column of the centre of every pixel of the view, from the box's definition alone."""
    top, left, box_height, box_width, mirrored = map(int, box)
    centres = (torch.arange(SIDE, dtype=torch.float64) + 0.5) / SIDE
    columns = left + (centres.flip(0) if mirrored else centres) * box_width - 0.5
    return (top + centres * box_height - 0.5)[:, None].expand(SIDE, SIDE), columns[None].expand(SIDE, SIDE)


@st.composite
def images_and_boxes(draw):
    height, width = draw(st.integers(40, 160)), draw(st.integers(40, 160))
    digest = draw(st.text(st.characters(codec="utf-8"), max_size=20))
    boxes = draw_boxes(digest, 3, height, width, flip=True)[1:]
    return height, width, boxes[draw(st.integers(0, 2))]


TEACHER_VIEWS = {
    "student's": View(SIDE),
    "crops": View(30, SIDE, "bicubic", "pillow"),
    "squashes": View((SIDE, SIDE), SIDE, "bilinear", "pillow"),
}


def rounding(height, width):
    """Source pixels in one step of 8 bits: half a step for each of two views. The halves need not cancel in the mean: where
    box and view have a common divisor, all pixels have few phases."""
    return 0.02 + max(height, width) / 255


@pytest.mark.parametrize("name", TEACHER_VIEWS)
@settings(max_examples=30)
@given(images_and_boxes())
@example((50, 40, np.array([10, 0, 40, 40, 0], np.int32)))
def test_teacher_and_student_see_the_same_crop(name, drawn):
    height, width, box = drawn
    image = coordinates(height, width)
    student = view_of(image, box, SIDE)
    teacher = TEACHER_VIEWS[name](image, box)
    rows, columns = disagreement(teacher, student, height, width)
    tolerance = rounding(height, width)
    assert rows < tolerance
    assert columns < tolerance


@settings(max_examples=30)
@given(images_and_boxes())
def test_the_student_sees_the_box_by_its_definition(drawn):
    height, width, box = drawn
    rows, columns, inside = decode(view_of(coordinates(height, width), box, SIDE).double(), height, width)
    wanted_rows, wanted_columns = expected(box, height, width)
    assert (rows - wanted_rows)[inside].abs().max() < 0.02 + 2 * max(height, width) / 255
    assert (columns - wanted_columns)[inside].abs().max() < 0.02 + 2 * max(height, width) / 255


@settings(max_examples=30)
@given(images_and_boxes())
def test_the_check_sees_one_pixel_and_a_mirror(drawn):
    """The negative control: on the same check another crop does not pass for the same one."""
    height, width, box = drawn
    image = coordinates(height, width)
    student = view_of(image, box, SIDE)
    tolerance = rounding(height, width)
    for axis in (0, 1):
        moved = box.copy()
        moved[axis] += 1
        assert disagreement(View(SIDE)(image, moved), student, height, width)[axis] > tolerance
    mirrored = box.copy()
    mirrored[4] ^= 1
    assert disagreement(View(SIDE)(image, mirrored), student, height, width)[1] > tolerance


@settings(max_examples=30)
@given(images_and_boxes(), st.integers(0, 99))
def test_equal_sides_and_resizers_give_equal_bits(drawn, seed):
    height, width, box = drawn
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image.setflags(write=False)  # decoders hand out read-only arrays
    assert torch.equal(View(SIDE)(image, box), view_of(image, box, SIDE))
    assert torch.equal(View(SIDE)(image, ZEROS), View(SIDE)(image))
    assert torch.equal(view_of(image, ZEROS, SIDE), center_view(image, SIDE))


@given(st.integers(-15, 15), st.integers(-11, 11), st.integers(1, 30), st.integers(1, 30), st.booleans())
def test_crop_reads_the_image_and_zeros_beyond_it(top, left, height, width, mirrored):
    image = np.random.default_rng(0).integers(1, 256, (16, 12, 3), dtype=np.uint8)
    box = np.array([top, left, height, width, mirrored], np.int32)
    if top + height <= 0 or left + width <= 0:
        with pytest.raises(DataError):
            cut(image, box)
        return
    padded = np.zeros((16 + 90, 12 + 90, 3), np.uint8)
    padded[45:61, 45:57] = image
    wanted = padded[45 + top : 45 + top + height, 45 + left : 45 + left + width]
    wanted = wanted[:, ::-1] if mirrored else wanted
    assert np.array_equal(cut(image, box).permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize(
    "box", [[0, 0, 0, 5, 0], [0, 0, -3, 5, 0], [16, 0, 4, 4, 0], [0, 0, 4, 4, 2], [0, 0, 2**30, 2**30, 0]]
)
def test_a_damaged_box_is_refused(box):
    with pytest.raises(DataError, match="a stored view"):
        cut(np.zeros((16, 12, 3), np.uint8), np.array(box, np.int32))


@given(st.text(st.characters(codec="utf-8"), max_size=9), st.integers(1, 6), st.integers(1, 300), st.integers(1, 300))
@example("a", 3, 1, 1)
def test_boxes_follow_from_digest_and_number(digest, count, height, width):
    first, boxes = np.split(draw_boxes(digest, count, height, width, flip=True), [1])
    assert not first.any(), "the deterministic view"
    assert boxes.shape == (count, 5)
    assert boxes.dtype == np.int32
    more = draw_boxes(digest, count + 3, height, width, flip=True)
    assert np.array_equal(more[1 : count + 1], boxes), "a view depends on how many follow it"
    plain = draw_boxes(digest, count, height, width, flip=False)[1:]
    assert np.array_equal(plain[:, :4], boxes[:, :4])
    assert not plain[:, 4].any()
    side, shift = min(height, width), max(1, min(height, width) // 8)
    assert (boxes[:, 2:4] == side).all()
    assert np.abs(boxes[:, 0] - (height - side) // 2).max() <= shift
    assert np.abs(boxes[:, 1] - (width - side) // 2).max() <= shift


def test_boxes_never_change():
    """What an existing cache was drawn with; another answer needs another version in the policy."""
    assert draw_boxes("xxh3:0123", 3, 90, 70, flip=True)[1:].tolist() == GOLDEN
    assert draw_boxes("xxh3:0124", 3, 90, 70, flip=True)[1:].tolist() != GOLDEN


def test_boxes_are_spread_as_the_students_own_views():
    """On an image of the student's size: both uniform over the same 9 shifts and the mirror, to a chi-squared test."""
    count, size = 9000, 32
    boxes = np.concatenate([draw_boxes(f"{i:032x}", 4, size, size, flip=True)[1:] for i in range(count // 4)])
    views = draw_views(np.random.default_rng(0), count, size, flip=True)
    stored = np.bincount((boxes[:, 0] + 4) * 18 + (boxes[:, 1] + 4) * 2 + boxes[:, 4], minlength=162)
    own = np.bincount(views[:, 0] * 18 + views[:, 1] * 2 + views[:, 2], minlength=162)
    assert len(stored) == len(own) == 162
    for counts in (stored, own):
        assert ((counts - count / 162) ** 2 / (count / 162)).sum() < 230  # p = .0003 at 161 degrees of freedom


def test_the_policy_names_what_the_boxes_follow_from():
    assert view_policy(0, True) == view_policy(0, False) == "none"
    policies = [view_policy(count, flip) for count in (1, 2) for flip in (True, False)]
    assert all(set(policy) == {"name", "count", "shift", "flip", "version"} for policy in policies)
    assert len({str(policy) for policy in policies}) == 4
