"""BIRD around a distillation loss of your own, in a training loop of your own. Run it: python examples/own_distance.py"""

import torch
from torch import nn

from bird import Batch, BirdStep, Gate


class Student(nn.Module):
    """Anything that answers (features, logits)."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(20, 16), nn.ReLU()), nn.Linear(16, 3)

    def forward(self, x):
        features = self.body(x)
        return features, self.head(features)


def cosine(h, gated, batch):
    """Your own D: what the student says (h), the gated teacher features, and the batch they belong to."""
    return (1 - torch.cosine_similarity(h.features, gated, dim=-1)).mean(-1)


def batch_of(seed, count=64):
    """Inputs, class labels, protected groups, and the teacher's features."""
    g = torch.Generator().manual_seed(seed)
    x, y, a = torch.randn(count, 20, generator=g), torch.arange(count) % 3, torch.arange(count) // 3 % 2
    return Batch(x + nn.functional.one_hot(y, 20), y, a, teacher=torch.tanh(x[:, :16]))


def main(epochs=30):
    """Train, and return the parts of the loss of every step."""
    torch.manual_seed(0)
    student, gate = Student(), Gate(16)
    step = BirdStep(student, gate, cosine, groups=2, mu2=1e-2)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    history = []
    for epoch in range(epochs):
        loss, parts = step(batch_of(epoch), meta_batch=batch_of(1000 + epoch), warm=epoch >= epochs // 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({name: float(value) for name, value in parts.items()})
    return history


if __name__ == "__main__":
    for epoch, parts in enumerate(main()):
        print(epoch, {name: round(value, 3) for name, value in parts.items()})
