"""Source of parts that a user would write into a file of their own; tests join what they need."""

SQUARES = '''
import numpy as np


class Squares:
    """Bright and dark squares, of two groups."""

    classes, group_names, image_size, flip = ("dark", "bright"), ("left", "right"), 16, False

    def __init__(self, count=96):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, n):
        noise = np.random.default_rng(n).integers(0, 100, (16, 16, 3), dtype=np.uint8)
        return {"image": noise + np.uint8(120 * (n % 2)), "label": n % 2, "group": n // 2 % 2}
'''

NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """Logits alone."""

    stages = ("body.0",)
    pixel_mean, pixel_std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(8, classes)

    def forward(self, pixels):
        return self.fc(self.body(pixels))
'''
