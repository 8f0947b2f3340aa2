"""The training loop: batches in, weights out, and now and then the share of held-out answers that come out whole.

An answer counts when each of its tokens is the likeliest one after the right tokens before it. That is what greedy
decoding would write, judged in one pass instead of one a token.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.train import mixture
from models.train.batches import LONGEST, Batch
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


def read_points(path: Path) -> list[Point]:
    """Read the points that a run wrote."""
    return [Point(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


KEPT = 0.25
"""The share that the weights before the last steps were taken again have in the end: what the second time forgets."""


class Schedule(NamedTuple):
    """The learning rate over `steps` steps and over the last `again` of them taken once more."""

    steps: int
    again: int = 0

    def share(self, step: int) -> float:
        """Return the share of the highest rate at this step, counted from 1: up, level, down to nothing; once more."""
        warm_up = min(WARM_UP, max(1, self.steps // 10))
        since, left = step, self.steps - step
        if step > self.steps:
            since, left = step - self.steps, self.steps + self.again - step
        return min(1.0, since / warm_up, max(0.0, left / (self.steps * FALLING)))


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
        schedule: Schedule,
        held_out: list[Batch],
        every: int,
        report: Callable[[Point], None],
        after: Point | None = None,
    ) -> None:
        """Take a step for each batch. Reports every `every` steps and at the end, with the accuracies then.

        `after` is the last point of the run that this one goes on from. Where steps are taken again, the weights come
        out as a mean of before and after; the last report is of those after.
        """
        tests = [OnDevice(batch, self.device) for batch in held_out]
        first, seen, spent = (schedule.steps + 1, after.tokens, after.seconds) if after else (1, 0, 0.0)
        last = schedule.steps + schedule.again
        began = time.monotonic() - spent
        running = torch.zeros((), device=self.device)
        before: list[Tensor] = []
        for step, batch in enumerate(batches, first):
            if step == schedule.steps + 1:
                before = [parameter.detach().clone() for parameter in self.model.parameters()]
            at = OnDevice(batch, self.device)
            loss = self._loss(at.tokens, at.positions, at.weights, at.starts)
            loss.backward()
            self.optimizer.step(schedule.share(step))
            seen += len(batch.tokens)
            running = running.lerp_(loss.detach(), 0.05 if step > first + 20 else 1.0)
            if step % every == 0 or step == last:
                lost = float(running)
                report(Point(step, seen, round(time.monotonic() - began, 2), round(lost, 5), self.accuracy(tests)))
        if before:
            with torch.no_grad():
                torch._foreach_lerp_(list(self.model.parameters()), before, KEPT)

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
            logits = self.model(tokens, positions, starts, LONGEST)
        losses = F.cross_entropy(logits.float(), tokens.roll(-1), reduction="none")
        return (losses * weights).sum() / weights.sum()

    def _plain_likeliest(self, tokens: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return torch.argmax(self.model(tokens, positions, starts, LONGEST), -1)
