"""The optimiser: Muon for the matrices, AdamW for the embedding and the norms.

Muon (K. Jordan and others, 2024) makes each step's momentum nearly orthogonal. It is done for all matrices of one
shape at once here, which on a model this small is several times as fast as one after another.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
MATRIX_RATE = 0.02
OTHER_RATE = 0.004
DECAY = 0.02
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


class Optimizer:
    """Steps all parameters of a model. The rates above are the highest; `step` is given the share that holds now."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], *, fused: bool) -> None:
        self.stacks: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        others: list[nn.Parameter] = []
        for name, parameter in parameters:
            if parameter.dim() == 2 and "embed" not in name:
                self.stacks[parameter.shape].append(parameter)
            else:
                others.append(parameter)
        self.momentum = {shape: torch.zeros(len(p), *shape, device=p[0].device) for shape, p in self.stacks.items()}
        self.adam = torch.optim.AdamW(
            others, lr=OTHER_RATE, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=fused
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, share: float) -> None:
        """Apply the gradients at this share of the highest rates, then forget them."""
        for shape, parameters in self.stacks.items():
            gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
            momentum = self.momentum[shape].lerp_(gradients, 1 - MOMENTUM)
            update = orthogonal(gradients.lerp_(momentum, MOMENTUM))
            rate = MATRIX_RATE * share
            scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(parameters, 1 - rate * DECAY)
            torch._foreach_add_(parameters, list(update.to(parameters[0].dtype).unbind()), alpha=-scale)
        for group in self.adam.param_groups:
            group["lr"] = OTHER_RATE * share
        self.adam.step()
        for parameters in self.stacks.values():
            for parameter in parameters:
                parameter.grad = None
        self.adam.zero_grad(set_to_none=True)


def orthogonal(stack: Tensor) -> Tensor:
    """Return the nearest orthogonal matrices, roughly, by Newton-Schulz in bf16. Shape: (many, rows, columns)."""
    a, b, c = COEFFICIENTS
    x = stack.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
