"""Training, Transformers and SGLang: a smoke run trains, packed and plain agree, and the shipped weights answer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.train import mixture
from tests.harness import ROOT

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(120)]

MODEL = ROOT / "models" / "troupe-small-chat"


def run(*command: str, seconds: float = 110) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout


def through_torch(*command: str, seconds: float = 110) -> Any:
    return json.loads(run("tests.models.through_torch", *command, seconds=seconds).splitlines()[-1])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a smoke run writes."""
    folder = tmp_path_factory.mktemp("smoke") / "model"
    run("models.train", "chat", "--smoke", "--out", str(folder), seconds=60)
    return folder


def test_a_smoke_run_writes_a_folder_like_the_shipped_one(smoke: Path) -> None:
    shipped = {path.name for path in MODEL.iterdir()} - {"README.md"}
    assert {path.name for path in smoke.iterdir()} == shipped
    points = [json.loads(line) for line in (smoke / "training.jsonl").read_text().splitlines()]
    assert points[-1]["loss"] < points[0]["loss"]
    assert list(points[-1]["accuracy"]) == mixture.NAMES


def test_the_model_in_plain_pytorch_agrees_with_transformers(smoke: Path) -> None:
    assert through_torch("agree", str(smoke)) < 1e-4


def test_the_shipped_weights_answer_held_out_requests() -> None:
    right = through_torch("answers", str(MODEL), "3")
    assert sum(right.values()) >= 3 * len(mixture.NAMES) - 2
    assert min(right.values()) >= 2


@pytest.mark.long
@pytest.mark.timeout(600)
def test_sglang_writes_the_greedy_tokens_of_transformers() -> None:
    by_transformers = through_torch("greedy", "transformers", str(MODEL), seconds=300)
    by_sglang = through_torch("greedy", "sglang", str(MODEL), seconds=290)
    assert len(by_sglang) == 64
    assert by_sglang == by_transformers
