"""The repetition penalty that a model has for all who say nothing, which an engine warms up with."""

from pathlib import Path

import pytest

from actors.engines.model_files import repetition_penalty


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{"repetition_penalty": 1.05}', 1.05),
        ('{"repetition_penalty": 2}', 2.0),
        ('{"repetition_penalty": true}', 1.0),
        ('{"repetition_penalty": 0}', 1.0),
        ('{"repetition_penalty": "1.1"}', 1.0),
        ("{}", 1.0),
        ("[]", 1.0),
        ("{", 1.0),
        (None, 1.0),
    ],
)
def test_what_a_model_says_of_repetition(tmp_path: Path, written: str | None, read: float) -> None:
    if written is not None:
        (tmp_path / "generation_config.json").write_text(written)
    assert repetition_penalty(tmp_path) == read
