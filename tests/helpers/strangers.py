"""Students as other people write them, and the gate's gradient by double backward for each."""

import random

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from torchvision.ops import DeformConv2d, RoIAlign

from bird import Batch, BirdStep, Gate
from bird.losses.terms import bias_loss, cross_entropy, feature_mse
from bird.step.tangents import native_recurrence

CLASSES, GROUPS, WIDTH, SIDE = 3, 2, 8, 8
CHANCE = np.random.default_rng(0)


def batch_of(seed, dtype=torch.float64, count=12, side=SIDE, width=WIDTH):
    """Every class has both groups."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64)
    teacher = torch.randn(count, width, generator=generator, dtype=torch.float64)
    labels, groups = torch.arange(count) % CLASSES, torch.arange(count) // CLASSES % GROUPS
    return Batch(inputs.to(dtype), labels, groups, teacher.to(dtype))


class Net(nn.Module):
    """A body of any kind, and a head."""

    def __init__(self, body, head=None):
        super().__init__()
        self.body, self.head = body, head or nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.body(x)
        features = (x.flatten(2).mean(2) if x.ndim > 2 else x).tanh()
        return features, self.head(features)


class Body(nn.Module):
    """A function of the inputs and of parts."""

    def __init__(self, forward, *parts):
        super().__init__()
        self.how, self.parts = forward, nn.ModuleList(parts)

    def forward(self, x):
        return self.how(x, *self.parts)


def conv(channels=3, out=WIDTH, side=3):
    return nn.Conv2d(channels, out, side, padding=side // 2)


def two(wrap=lambda layer: layer):
    return nn.Sequential(wrap(conv()), nn.ReLU(), wrap(conv(WIDTH)))


def normed():
    return nn.Sequential(conv(), nn.BatchNorm2d(WIDTH), nn.ReLU(), conv(WIDTH))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM, **options):
        super().__init__()
        self.layer = kind(3 * SIDE, WIDTH, batch_first=True, **options)

    def forward(self, x):
        return self.layer(x.transpose(1, 2).flatten(2))[0][:, -1, :WIDTH]


class Words(nn.Module):
    """The image as two words."""

    def __init__(self, kind=nn.Embedding, **options):
        super().__init__()
        self.table, self.layer = kind(7, WIDTH, **options), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        found = self.table((x[:, 0, :2, 0] * 6.99).long())
        return self.layer((found.mean(1) if found.ndim == 3 else found).tanh())


class Moving(nn.Module):
    """It moves a buffer, and then uses it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = conv(), conv(WIDTH, side=1)
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        x = self.first(x).relu()
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        self.seen += 1
        return self.second(x) * (1 + self.mean[:, None, None]).tanh() * self.seen


class Counting(nn.Module):
    """State that is not in a buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.passes = conv(), 0

    def forward(self, x):
        self.passes += 1
        return self.layer(x) * self.passes


def frozen_mean(x, layer):
    x = layer(x)
    with torch.no_grad():
        mean = x.mean((0, 2, 3), keepdim=True)
    return x * (1 + mean)


def by_numpy(x, layer):
    x = layer(x)
    return x * torch.from_numpy(CHANCE.random(x.shape) > 0.5).to(x)


def by_python(x, first, *layers):
    x = first(x)
    for layer in layers:
        if random.random() < 0.5:
            x = x + layer(x).relu()
    return x


class Rounded(torch.autograd.Function):
    """The straight-through estimator, as it is usually written: no `jvp`."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@torch.library.custom_op("strangers::sine", mutates_args=())
def sine(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


sine.register_autograd(
    lambda ctx, gradient: ctx.x.cos() * gradient,
    setup_context=lambda ctx, inputs, output: setattr(ctx, "x", inputs[0]),
)


def warped(x, layer, where):
    theta = 0.1 * where(x.flatten(1)).view(-1, 2, 3) + torch.eye(2, 3, dtype=x.dtype)
    grid = F.affine_grid(theta, (len(x), WIDTH, SIDE, SIDE), align_corners=False)
    return F.grid_sample(layer(x), grid, align_corners=False)


def far(x, layer, places):
    return torch.cdist(layer(x.flatten(1)), places.weight)


def regions(x, layer, align):
    boxes = torch.tensor([[number, 0.0, 0.0, 6.0, 6.0] for number in range(len(x))], dtype=x.dtype)
    return align(layer(x), boxes)


def flat():
    return nn.Linear(3 * SIDE * SIDE, 5)


STRANGERS = {
    "dropout": lambda: nn.Sequential(two(), nn.Dropout(0.5), conv(WIDTH)),
    "scripted": lambda: torch.jit.script(normed()),
    "a moving buffer": Moving,
    "no_grad": lambda: Body(frozen_mean, conv()),
    "spectral_norm": lambda: two(parametrizations.spectral_norm),
    "old spectral_norm": lambda: two(spectral_norm),
    "LSTM": Recurrent,
    "LSTM that drops": lambda: Recurrent(num_layers=2, bidirectional=True, dropout=0.3),
    "GRU": lambda: Recurrent(nn.GRU),
    "sparse embedding": lambda: Words(sparse=True),
    "attention that drops": lambda: Body(
        lambda x, layer, attend: attend(*[layer(x).flatten(2).mT] * 3)[0].mean(1),
        conv(),
        nn.MultiheadAttention(WIDTH, 2, dropout=0.3, batch_first=True),
    ),
    "frozen layers": lambda: nn.Sequential(conv().requires_grad_(False), nn.BatchNorm2d(WIDTH), conv(WIDTH)),
}
"""Right, and as fast as any."""
SLOWER = {
    "weight_norm": (lambda: two(parametrizations.weight_norm), "_weight_norm_interface"),
    "old weight_norm": (lambda: two(weight_norm), "_weight_norm_interface"),
    "grid_sample": (lambda: Body(warped, conv(), nn.Linear(3 * SIDE * SIDE, 6)), "grid_sampler_2d"),
    "cdist": (lambda: Body(far, flat(), nn.Linear(5, WIDTH)), "_cdist_forward"),
    "fake quantise": (
        lambda: nn.Sequential(conv(), torch.ao.quantization.FakeQuantize(), conv(WIDTH)),
        "_fake_quantize",
    ),
    "autograd.Function": (lambda: Body(lambda x, layer: Rounded.apply(4 * layer(x)), conv()), "jvp"),
    "torch.library": (lambda: Body(lambda x, layer: sine(layer(x)), conv()), "strangers.sine"),
    "torch.library beside": (lambda: Body(lambda x, layer: layer(x) + 0.01 * sine(layer(x)), conv()), "strangers.sine"),
}
"""Right by double backward, and what is named."""
REFUSED = {
    "DeformConv2d": (
        lambda: Body(lambda x, o, d: d(x, o(x)), conv(out=18), DeformConv2d(3, WIDTH, 3, padding=1)),
        "deform",
    ),
    "RoIAlign": (lambda: Body(regions, conv(), RoIAlign(3, 1.0, -1)), "torchvision.roi_align"),
    "EmbeddingBag": (lambda: Words(nn.EmbeddingBag), "_embedding_bag"),
    "numpy": (lambda: Body(by_numpy, conv()), "another answer"),
    "Python": (lambda: Body(by_python, conv(), *[conv(WIDTH) for _ in range(4)]), "another answer"),
    "state in no buffer": (Counting, "another answer"),
}
"""No exact way, and what is named."""


def normed_on():
    return nn.Sequential(nn.BatchNorm2d(WIDTH), nn.ReLU(), conv(WIDTH))


class Checkpointed(nn.Module):
    """A body whose activations are computed again in the backward pass, if `again`."""

    def __init__(self, again):
        super().__init__()
        self.body, self.again = nn.Sequential(normed(), nn.Dropout(0.3), nn.BatchNorm2d(WIDTH)), again

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False) if self.again else self.body(x)


def made(build, dtype=torch.float64):
    """A student and a gate, always the same."""
    torch.manual_seed(0)
    random.seed(0)
    return Net(build()).to(dtype), Gate(WIDTH).to(dtype)


def by_step(student, gate, batch, meta, *, mu1=0.1, **options):
    """phi's gradient by BirdStep, which leaves phi where it is."""
    step = BirdStep(
        student, gate, groups=GROUPS, mu1=mu1, optimizer=torch.optim.SGD(gate.parameters(), lr=0.0), **options
    )
    torch.manual_seed(5)
    step(batch, meta)
    return gate.phi.grad.clone()


def by_double_backward(student, gate, batch, meta, *, mu1=0.1):
    """phi's gradient as the formula reads, through the student's own forward pass."""
    theta = {name: value for name, value in student.named_parameters() if value.requires_grad}
    torch.manual_seed(5)
    with native_recurrence(), sdpa_kernel(SDPBackend.MATH):
        features, logits = student(batch.inputs)
        inner = 0.9 * feature_mse(features, gate(batch.teacher)) + 0.1 * cross_entropy(logits, batch.labels)
        slope = torch.autograd.grad(inner, list(theta.values()), create_graph=True, materialize_grads=True)
        ahead = {name: value - mu1 * g for (name, value), g in zip(theta.items(), slope, strict=True)}
        buffers = {name: value.clone() for name, value in student.named_buffers()}
        answer = functional_call(student, ahead | buffers, (meta.inputs,))
        bias = bias_loss(answer[1], meta.labels, meta.groups, GROUPS)
        return torch.autograd.grad(bias, gate.phi)[0]


def apart(found, expected):
    """The relative difference."""
    return ((found - expected).norm() / expected.norm()).item()
