"""Views: the deterministic one, and random ones replayed from stored numbers."""

import numpy as np
import torch
from torch.nn.functional import pad

from bird.student_views import apply_views, center_view, crop_at_once, draw_views, mirror_as, unit_range


def test_views_are_replayed_from_their_numbers():
    pixels = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    views = draw_views(np.random.default_rng(0), 20, 32, flip=True)
    assert torch.equal(apply_views(pixels, views), apply_views(pixels, views.copy()))
    padded = torch.nn.functional.pad(pixels, [4] * 4)
    for image, (top, left, mirrored), whole in zip(apply_views(pixels, views), views, padded, strict=True):
        crop = whole[:, top : top + 32, left : left + 32]
        assert torch.equal(image, crop.flip(-1) if mirrored else crop)


def test_a_batch_is_cropped_at_once_as_it_is_image_by_image():
    for size, flip in ((32, True), (48, True), (9, False)):
        pixels = torch.randint(0, 256, (20, 3, size, size), dtype=torch.uint8)
        views = draw_views(np.random.default_rng(size), 20, size, flip=flip)
        padded = pad(pixels, [max(1, size // 8)] * 4)
        assert torch.equal(crop_at_once(padded, views, size), apply_views(pixels, views))


def test_the_middle_view_is_the_image_itself():
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(apply_views(pixels, np.array([[4, 4, 0]] * 2)), pixels)


def test_views_cover_their_range_and_flip_only_where_asked():
    views = draw_views(np.random.default_rng(0), 2000, 32, flip=True)
    assert {*views[:, 0].tolist()} == {*views[:, 1].tolist()} == {*range(9)}
    assert 0.4 < views[:, 2].mean() < 0.6
    assert not draw_views(np.random.default_rng(0), 100, 32, flip=False)[:, 2].any()


def test_center_view_is_square_and_leaves_a_fitting_image_alone():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(center_view(image, 32).permute(1, 2, 0).numpy(), image)
    assert center_view(np.zeros((90, 70, 3), np.uint8), 32).shape == (3, 32, 32)
    assert unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]


def test_maps_are_mirrored_with_their_image():
    maps = torch.rand(3, 5, 4, 4)
    views = np.array([[0, 0, 1], [3, 2, 0], [8, 8, 1]])
    mirrored = mirror_as(maps, views)
    assert torch.equal(mirrored[1], maps[1])
    assert torch.equal(mirrored[[0, 2]], maps[[0, 2]].flip(-1))
    assert torch.equal(mirror_as(maps[:, 0], views), mirrored[:, 0])
