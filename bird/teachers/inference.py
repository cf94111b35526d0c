"""The same answers in less time, on a CPU: a frozen teacher skips what plain modules do only for training.

| what | in place of | because |
|---|---|---|
| convolutions that scale and shift, channels last | convolution, batch norm | a pass over the maps less, a better kernel |
| attention of linear layers | nn.MultiheadAttention | under autocast it copies its weights once an image |
| QuickGELU in place | QuickGELU, three new tensors | fresh memory costs more than the arithmetic |
| a ViT's last block, or a CNN's attention pool, of one token | of all | nobody reads the others |

The replacements are proved by the answers themselves (`hasten`); the weights that a teacher is known by are the plain ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["hasten"]

ROUNDING = 1e-4  # of a layer's norm; rounding alone is 1e-6 in deep networks, a wrong replacement far more


def hasten(module: nn.Module, answers: Callable[[], Mapping[str, Tensor]], whole: Callable[[], bool]) -> bool:
    """Replace parts of a frozen module by faster ones, in place; whether it was done.

    `answers` asks the module in full precision for all that it will ever be asked for: unless it says the same afterwards,
    to rounding, every part is put back. `whole` says, while the module runs, whether more than a ViT's CLS token is read.
    """
    plain = answers()
    swaps = Swaps(module)
    _fold_norms(swaps)
    _attend(swaps)
    _read_one_token(swaps, whole)
    try:
        same = all(_agree(value, plain[layer]) for layer, value in answers().items())
    except Exception:  # a model that looks into its own parts may fail in any way
        same = False
    if not same:
        swaps.undo()
    return same and bool(swaps.replaced)


@final
class Swaps:
    """Parts of a module that others stand in for."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.replaced: list[tuple[str, nn.Module]] = []

    def put(self, path: str, part: nn.Module) -> None:
        """Let `part` stand at `path`."""
        self.replaced.append((path, self.module.get_submodule(path)))
        self._set(path, part.eval())

    def undo(self) -> None:
        """As it was before."""
        while self.replaced:
            self._set(*self.replaced.pop())

    def _set(self, path: str, part: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        setattr(self.module.get_submodule(parent), name, part)


def _agree(found: Tensor, plain: Tensor) -> bool:
    return found.shape == plain.shape and bool((found - plain).norm() <= ROUNDING * plain.norm())


def _heard(part: nn.Module) -> bool:
    """Whether somebody listens to a part, which has to stay then."""
    return bool(part._forward_hooks or part._forward_pre_hooks)


# ---- convolutions -----------------------------------------------------------------------------------------------


def _fold_norms(swaps: Swaps) -> None:
    """Every batch norm that alone reads what a convolution gives, into that convolution."""
    paths = Counter(id(part) for _, part in swaps.module.named_modules(remove_duplicate=False))
    for conv_path, norm_path in [*_pairs(swaps.module, "")]:
        conv: Any = swaps.module.get_submodule(conv_path)
        norm: Any = swaps.module.get_submodule(norm_path)
        if paths[id(conv)] > 1 or paths[id(norm)] > 1 or _heard(conv) or _heard(norm):
            continue
        swaps.put(conv_path, fuse_conv_bn_eval(conv, norm).to(memory_format=torch.channels_last))
        swaps.put(norm_path, nn.Identity())


def _pairs(module: nn.Module, path: str) -> Iterator[tuple[str, str]]:
    """The paths of a convolution and the batch norm behind it, in a module that can be traced, or in its children."""
    if not _has_norm(module):
        return
    try:
        graph = _Tracer().trace(module)
    except Exception:  # control flow on values, or arguments that are no tensors: its children may do without
        for name, child in module.named_children():
            yield from _pairs(child, f"{path}{name}.")
        return
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        conv = node.args[0] if node.op == "call_module" and len(node.args) == 1 and not node.kwargs else None
        if not isinstance(conv, fx.Node) or conv.op != "call_module" or len(conv.users) > 1:
            continue
        first, second = (module.get_submodule(str(each.target)) for each in (conv, node))
        if type(first) is not nn.Conv2d or type(second) is not nn.BatchNorm2d or second.running_mean is None:
            continue
        if calls[conv.target] == calls[node.target] == 1:
            yield f"{path}{conv.target}", f"{path}{node.target}"


def _has_norm(module: nn.Module) -> bool:
    return any(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@final
class _Tracer(fx.Tracer):
    """Looks into what holds batch norms, and takes everything else as one step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.BatchNorm2d) or not _has_norm(m)


# ---- transformers -----------------------------------------------------------------------------------------------


def _attend(swaps: Swaps) -> None:
    for path, part in [*swaps.module.named_modules()]:
        if type(part) is nn.MultiheadAttention and part.batch_first and part.in_proj_bias is not None:
            if part._qkv_same_embed_dim and part.bias_k is None and not part.add_zero_attn and not _heard(part):
                swaps.put(path, Attention(part))
        elif type(part) is nn.Sequential:
            for (_, before), (name, after) in pairwise(part.named_children()):
                if type(before) is nn.Linear and type(after).__name__ == "QuickGELU" and not _heard(before):
                    swaps.put(f"{path}.{name}", QuickGELU())


def _read_one_token(swaps: Swaps, whole: Callable[[], bool]) -> None:
    """Of open_clip's towers, the last part of which reads one token."""
    tower: Any = swaps.module
    if type(tower).__name__ == "ModifiedResNet" and type(tower.attnpool).__name__ == "AttentionPool2d":
        swaps.put("attnpool", AttentionPool(tower.attnpool))
    if type(tower).__name__ != "VisionTransformer" or getattr(tower, "pool_type", "") != "tok" or tower.attn_pool:
        return
    block = tower.transformer.resblocks[-1]
    if type(block).__name__ == "ResidualAttentionBlock" and isinstance(block.attn, Attention) and not _heard(block):
        swaps.put(f"transformer.resblocks.{len(tower.transformer.resblocks) - 1}", LastBlock(block, whole))


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Of (batch, tokens, width) each."""
    q, k, v = (each.view(*each.shape[:2], heads, -1).transpose(1, 2) for each in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@final
class Attention(nn.Module):
    """What nn.MultiheadAttention gives, where neither weights nor a mask are asked for. That one turns its input around, and
    a linear layer under autocast takes such a tensor image by image, each with a copy of the weights."""

    def __init__(self, plain: nn.MultiheadAttention) -> None:
        super().__init__()
        self.plain, self.heads = plain, plain.num_heads

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = True, **others: Any
    ) -> tuple[Tensor, Tensor | None]:
        """See nn.MultiheadAttention."""
        if need_weights or key is not value or any(other is not None for other in others.values()):
            return self.plain(query, key, value, need_weights=need_weights, **others)  # type: ignore[no-any-return]  # a module's answer is Any
        weight, bias, width = self.plain.in_proj_weight, self.plain.in_proj_bias, query.shape[-1]
        if query is key:
            q, k, v = F.linear(query, weight, bias).chunk(3, -1)
        else:
            q = F.linear(query.contiguous(), weight[:width], bias[:width])
            k, v = F.linear(key, weight[width:], bias[width:]).chunk(2, -1)
        return self.plain.out_proj(_attention(q, k, v, self.heads)), None


@final
class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), in the memory of x."""

    def forward(self, x: Tensor) -> Tensor:
        """Ends x."""
        return F.silu(x.mul_(1.702), inplace=True).mul_(1 / 1.702)


@final
class LastBlock(nn.Module):
    """The last block of open_clip's ViT, of the CLS token alone unless somebody reads the others."""

    def __init__(self, block: nn.Module, whole: Callable[[], bool]) -> None:
        super().__init__()
        self.block: Any = block
        self.whole = whole

    def forward(self, tokens: Tensor, **others: Any) -> Tensor:
        """(batch, tokens, width) -> the same, or (batch, 1, width)."""
        if self.whole() or any(other is not None for other in others.values()):
            return self.block(tokens, **others)  # type: ignore[no-any-return]  # a module's answer is Any
        block, normed = self.block, self.block.ln_1(tokens)
        token = tokens[:, :1] + block.ls_1(block.attn(normed[:, :1], normed, normed, need_weights=False)[0])
        return token + block.ls_2(block.mlp(block.ln_2(token)))  # type: ignore[no-any-return]  # a module's answer is Any


@final
class AttentionPool(nn.Module):
    """open_clip's AttentionPool2d, of whose tokens only the first, the mean, is read: it alone asks the others."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain: Any = plain

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, width)."""
        pool, tokens = self.plain, maps.flatten(2).mT
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        tokens = tokens + pool.positional_embedding.to(tokens.dtype)
        query, key, value = pool.q_proj(tokens[:, :1].contiguous()), pool.k_proj(tokens), pool.v_proj(tokens)
        return pool.c_proj(_attention(query, key, value, pool.num_heads))[:, 0]  # type: ignore[no-any-return]  # a module's answer is Any
