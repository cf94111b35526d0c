"""A stored view is the same crop for teacher and student, whatever their input sizes and the image's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bird.teachers.base import View
from bird.transforms import center_view, draw_views
from bird.views import BOX, draw_boxes, view_of, view_policy


def coordinates(height, width):
    """An image whose red is the column and whose green is the row, scaled; blue marks the image against the zeros."""
    rows, columns = np.mgrid[0:height, 0:width]
    parts = columns * 200.0 / width + 20, rows * 200.0 / height + 20, np.full((height, width), 255.0)
    return np.stack(parts, axis=2).round().astype(np.uint8)


SIZES = st.tuples(st.integers(24, 120), st.integers(24, 120), st.integers(16, 64))


def apart(image, teacher_box, student_box, size, resizer="tensor"):
    """Mean difference between what a teacher and a student of that input size see, in gray levels."""
    teacher = 255 * View(resize=size + 8, crop=size, resizer=resizer)(image, teacher_box)
    return float((teacher - view_of(image, student_box, size).float()).abs().mean())


@settings(max_examples=40)
@given(SIZES, st.integers(0, 1000))
def test_teacher_and_student_see_the_same_crop(size, seed):
    height, width, side = size
    image = coordinates(height, width)
    for box in draw_boxes(f"{seed:032x}", 3, height, width, flip=True)[1:]:
        assert apart(image, box, box, side) < 0.01, "same resizer, same size: the same pixels"
        assert apart(image, box, box, side, "pillow") < 1.5, "Pillow rounds otherwise, no more"


@pytest.mark.parametrize("change", [[3, 0, 0, 0, 0], [0, -3, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, -6, -6, 0]])
def test_another_crop_would_be_noticed(change):
    """Negative controls for the law above."""
    image, box = coordinates(64, 64), np.array([2, -3, 64, 64, 0], np.int32)
    assert apart(image, box, box + np.array(change, np.int32), 32) > 1.5


def test_the_first_view_is_the_deterministic_one():
    image = coordinates(50, 70)
    boxes = draw_boxes("ab", 2, 50, 70, flip=True)
    assert boxes.shape == (3, BOX)
    assert not boxes[0].any()
    assert torch.equal(view_of(image, boxes[0], 32), center_view(image, 32))
    plain = View(resize=40, crop=32)
    assert torch.equal(plain(image, boxes[0]), plain(image))


def test_boxes_are_drawn_as_a_student_is_augmented_and_are_pinned():
    boxes = np.concatenate([draw_boxes(f"{i:032x}", 4, 32, 32, flip=True)[1:] for i in range(2000)])
    views = draw_views(np.random.default_rng(0), 8000, 32, flip=True)
    assert {*boxes[:, 0].tolist()} == {top - 4 for top in views[:, 0].tolist()}
    assert abs(boxes[:, 4].mean() - 0.5) < 0.03
    assert abs(boxes[:, 0].mean()) < 0.15
    assert not draw_boxes("ab", 50, 32, 32, flip=False)[:, 4].any()
    np.testing.assert_array_equal(draw_boxes("ab", 5, 40, 60, True)[:3], draw_boxes("ab", 2, 40, 60, True))
    assert draw_boxes("ab", 1, 32, 32, True)[1].tolist() == PINNED
    assert view_policy(0, True) == "none"
    assert view_policy(2, True)["count"] == 2


PINNED = [1, 3, 32, 32, 1]
