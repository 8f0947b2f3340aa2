"""The training loop: batches in, weights out, and now and then the share of held-out answers that come out whole.

An answer counts when each of its tokens is the likeliest one after the right tokens before it. That is what greedy
decoding would write, judged in one pass instead of one a token.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.train import mixture
from models.train.batches import LONGEST, TRAINED, Batch
from models.train.model import ChatModel
from models.train.optimizer import Optimizer

WARM_UP = 150
"""Steps until the learning rate is at its highest."""
FALLING = 0.6
"""The last part of training, over which the learning rate falls to nothing."""


@dataclass(slots=True)
class Point:
    """A point of the learning curve."""

    step: int
    tokens: int
    seconds: float
    loss: float
    accuracy: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """Return it as a line of JSON."""
        return json.dumps({key: getattr(self, key) for key in self.__slots__})


def share_of_rate(step: int, steps: int) -> float:
    """Return the share of the highest learning rate at this step, counted from 1: up, level, down to nothing."""
    warm_up = min(WARM_UP, max(1, steps // 10))
    return min(1.0, step / warm_up, max(0.0, (steps - step) / (steps * FALLING)))


class OnDevice:
    """A batch as tensors."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        def moved(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], dtype: torch.dtype) -> Tensor:
            tensor = torch.from_numpy(array)
            tensor = tensor.pin_memory() if device.type == "cuda" else tensor
            return tensor.to(device, non_blocking=True).to(dtype)

        self.tokens = moved(batch.tokens, torch.int64)
        self.positions = moved(batch.positions, torch.int32)
        self.weights = moved(batch.weights, torch.float32)
        self.starts = moved(batch.starts, torch.int32)
        self.document = moved(batch.document, torch.int64)
        self.skills = moved(batch.skills, torch.int64)


class Trainer:
    """A model in training on one device."""

    def __init__(self, model: ChatModel, device: torch.device, *, compiled: bool) -> None:
        self.model, self.device = model.to(device), device
        self.optimizer = Optimizer(self.model.named_parameters(), fused=device.type == "cuda")
        self._loss: Callable[..., Tensor] = (
            torch.compile(self._plain_loss, dynamic=False) if compiled else self._plain_loss
        )
        self._likeliest: Callable[..., Tensor] = (
            torch.compile(self._plain_likeliest, dynamic=False) if compiled else self._plain_likeliest
        )

    def train(
        self,
        batches: Iterable[Batch],
        steps: int,
        held_out: list[Batch],
        every: int,
        report: Callable[[Point], None],
    ) -> None:
        """Take a step for each of `steps` batches. Reports every `every` steps and at the end, with the accuracies."""
        tests = [OnDevice(batch, self.device) for batch in held_out]
        seen, began = 0, time.monotonic()
        running = torch.zeros((), device=self.device)
        for step, batch in enumerate(batches, 1):
            at = OnDevice(batch, self.device)
            loss = self._loss(at.tokens, at.positions, at.weights, at.starts)
            loss.backward()
            self.optimizer.step(share_of_rate(step, steps))
            seen += len(batch.tokens)
            running = running.lerp_(loss.detach(), 0.05 if step > 20 else 1.0)
            if step % every == 0 or step == steps:
                lost = float(running)
                report(Point(step, seen, round(time.monotonic() - began, 2), round(lost, 5), self.accuracy(tests)))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def accuracy(self, tests: list[OnDevice]) -> dict[str, float]:
        """Return for each skill the share of held-out answers that come out whole."""
        right = torch.zeros(len(mixture.NAMES), device=self.device)
        total = torch.zeros_like(right)
        for test in tests:
            wrong = (self._likeliest(test.tokens, test.positions, test.starts) != test.tokens.roll(-1)) & (
                test.weights > 0
            )
            missed = torch.zeros(len(test.skills) + 1, device=self.device).index_add_(0, test.document, wrong.float())[
                :-1
            ]
            real = test.skills >= 0
            total.index_add_(0, test.skills[real], torch.ones_like(missed)[real])
            right.index_add_(0, test.skills[real], (missed == 0).float()[real])
        return {
            name: round(share, 4)
            for name, share in zip(mixture.NAMES, (right / total.clamp(min=1)).tolist(), strict=True)
        }

    def _plain_loss(self, tokens: Tensor, positions: Tensor, weights: Tensor, starts: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.model(tokens, positions, starts, TRAINED)
        losses = F.cross_entropy(logits.float(), tokens.roll(-1), reduction="none")
        return (losses * weights).sum() / weights.sum()

    def _plain_likeliest(self, tokens: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return torch.argmax(self.model(tokens, positions, starts, LONGEST), -1)
