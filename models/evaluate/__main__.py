"""Prints the accuracy table: `python -m models.evaluate`; of a running cluster with `--through http://…`."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from models.evaluate import judge
from models.train import mixture
from models.train.examples import Conversation

MODEL = Path(__file__).parent.parent / "troupe-small-chat"


def main() -> None:
    """Read the command line, ask, judge and print."""
    parser = argparse.ArgumentParser(prog="python -m models.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="model folder (default: models/troupe-small-chat)")
    parser.add_argument("--each", type=int, default=200, help="requests of each skill (default: 200)")
    parser.add_argument("--seed", default="0", help="the same seed gives the same requests (default: 0)")
    parser.add_argument("--skills", help=f"some only, with commas between (default: {'; '.join(mixture.NAMES)})")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for Transformers (default: cpu)")
    parser.add_argument("--batch", type=int, default=32, help="requests at once, of a cluster (default: 32)")
    parser.add_argument("--through", metavar="URL", help="ask a running cluster at its HTTP door instead")
    parser.add_argument("--served", default="troupe-small-chat", help="the model's name there")
    parser.add_argument("--wrong", type=int, default=0, metavar="N", help="show N wrong answers of each skill")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write every request and answer as JSON lines")
    given = parser.parse_args()
    names = _names(parser, given.skills)
    asked = judge.cases(given.each, given.seed, names)
    began = time.monotonic()
    if given.through:
        answers = asyncio.run(_through(given.through, given.served, asked, given.batch))
    else:
        answers = _transformers(given.model, given.device, asked)
    seconds = time.monotonic() - began
    if given.save:
        given.save.write_text("".join(map(_line, asked, answers)), encoding="utf-8")
    rows = judge.score(asked, answers)
    print(judge.table(rows))
    for row in rows:
        for conversation, answer in row.wrong[: given.wrong]:
            print(f"\n{row.skill}: {conversation.messages[-1]['content']!r}")
            print(f"  wanted {conversation.last.reply()!r}\n  wrote {answer!r}")
    print(f"\n{len(asked)} requests in {seconds:.0f} s", file=sys.stderr)


def _names(parser: argparse.ArgumentParser, text: str | None) -> Sequence[str]:
    if text is None:
        return mixture.NAMES
    left, chosen = text, []
    for name in sorted(mixture.NAMES, key=len, reverse=True):
        if name in left:
            chosen.append(name)
            left = left.replace(name, "")
    if left.strip(", "):
        parser.error(f"--skills: no skill {left.strip(', ')}: there are {'; '.join(mixture.NAMES)}")
    return [name for name in mixture.NAMES if name in chosen]


def _transformers(folder: Path, device: str, asked: Sequence[Conversation]) -> list[str]:
    if device == "cpu":
        # Where SGLang is installed for a CPU, Transformers cannot be imported without its shims.
        from actors.engines.cpu_shims import activate

        activate()
    from models.evaluate.transformers import Transformers

    answers = []
    for answer in Transformers(folder, device).answers(asked):
        answers.append(answer)
        if len(answers) % 20 == 0:
            print(f"\r{len(answers)} of {len(asked)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return answers


async def _through(url: str, served: str, asked: Sequence[Conversation], at_once: int) -> list[str]:
    from models.evaluate.through import Door, collect

    async with Door(url, served) as door:
        return await collect(asked, door.generate, at_once)


def _line(conversation: Conversation, answer: str) -> str:
    right = judge.is_right(conversation.last, answer)
    kept = {
        "skill": conversation.skill,
        "key": conversation.last.key,
        "thinking": conversation.thinking,
        "answer": answer,
    }
    return json.dumps({**kept, "right": right}, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
