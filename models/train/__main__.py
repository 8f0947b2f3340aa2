"""Trains a model from nothing: `python -m models.train chat --device cuda`; `--smoke` shows that all parts run."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent.parent


class Plan(NamedTuple):
    """How much of everything."""

    steps: int
    batch: int
    tests: int
    every: int
    words: int
    """Conversations that the tokenizer is trained on."""


FULL = Plan(steps=22_000, batch=65_536, tests=128, every=400, words=20_000)
SMOKE = Plan(steps=8, batch=4096, tests=1, every=3, words=2_000)


def main() -> None:
    """Read the command line, then train and write the folder."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("model", choices=["chat"], help="which model to train")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--out", type=Path, help="folder to write (default: models/troupe-small-chat; with --smoke there is none)"
    )
    parser.add_argument("--seed", default="0", help="the same seed gives the same data (default: 0)")
    parser.add_argument("--steps", type=int, help=f"training steps (default: {FULL.steps})")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny run on a tiny model: shows that all parts work together"
    )
    given = parser.parse_args()
    if given.smoke and given.out is None:
        parser.error("--smoke needs --out FOLDER, so that it cannot overwrite the real weights")
    plan = SMOKE if given.smoke else FULL
    if given.steps:
        plan = plan._replace(steps=given.steps)
    train(plan, given.device, given.out or HERE / "troupe-small-chat", given.seed, smoke=given.smoke)


def train(plan: Plan, device: str, folder: Path, seed: str, *, smoke: bool) -> None:
    """Train. At each point of the learning curve it is printed and `folder` written: a run cut short leaves a model."""
    import torch

    from models.train import batches, curve, export, tokenizer
    from models.train.loop import Point, Trainer
    from models.train.model import ChatModel, Shape

    began = time.monotonic()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    words = tokenizer.train(seed, plan.words)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    print(f"tokenizer after {time.monotonic() - began:.1f} s", flush=True)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    if device == "cuda":
        # Copying a batch is too little for many threads: they would spin, on the cores of those who make the data.
        torch.set_num_threads(1)
    shape = Shape(num_hidden_layers=2) if smoke else Shape()
    model = ChatModel(shape)
    model.initialise(torch.Generator().manual_seed(0))
    trainer = Trainer(model, torch.device(device), compiled=device == "cuda")
    processes = 0 if smoke else max(1, len(os.sched_getaffinity(0)) - 1)
    held_out = batches.held_out_batches(batches.Encoder(words), seed, plan.tests, plan.batch)

    points: list[Point] = []
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "training.jsonl"
    log.write_text("", encoding="utf-8")

    def report(point: Point) -> None:
        points.append(point)
        with log.open("a", encoding="utf-8") as file:
            file.write(point.line() + "\n")
        export.write(model, words, folder)
        (folder / "learning-curve.svg").write_text(curve.draw(points), encoding="utf-8")
        worst = min(point.accuracy, key=point.accuracy.__getitem__)
        mean = sum(point.accuracy.values()) / len(point.accuracy)
        shares = f"right {mean:.3f}, worst {worst} {point.accuracy[worst]:.3f}"
        print(f"step {point.step}: {point.seconds:.0f} s, loss {point.loss:.4f}, {shares}", flush=True)

    made = batches.training_batches(words, seed, plan.batch, plan.steps, processes)
    trainer.train(made, plan.steps, held_out, plan.every, report)
    print(json.dumps(points[-1].accuracy, indent=2))
    print(f"{folder} written after {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
