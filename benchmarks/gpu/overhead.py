"""What Troupe costs: tokens/s and times of four ways to the same engine, interleaved, by how many streams at once."""

import time
from typing import Any, NamedTuple

from benchmarks.gpu import profile
from benchmarks.gpu.context import Context, Result
from benchmarks.gpu.jobs import Job
from benchmarks.gpu.ways import Way, all_ways, model_of
from benchmarks.rig import median, table

POOL = {"0.6b": 294_912, "8b": 147_456}
"""Tokens in each engine's KV pool, by size: three engines of 8 B fit an H200 with it."""

START = 330.0
"""Seconds until all three must be there; the first on a machine compile their kernels."""

ROUNDS = 40
"""How often a cell that was asked for is measured, if there is time."""

REST = 12.0
"""Seconds to be left for another round."""


class Cell(NamedTuple):
    """How long prompts and answers are, how many streams there are at once, and how often each goes on."""

    length: int
    tokens: int
    at_once: int
    waves: int = 1

    def __str__(self) -> str:
        return f"{self.length} in, {self.tokens} out, {self.at_once} at once"


TELLING = (Cell(128, 256, 128, 2), Cell(128, 256, 1, 3), Cell(128, 256, 32, 2))
SLOW = (Cell(128, 256, 512), Cell(2_000, 128, 1, 3), Cell(2_000, 128, 32), Cell(2_000, 128, 128))
LAST = (Cell(2_000, 128, 512),)
REHEARSAL = (Cell(16, 8, 4, 2), Cell(64, 8, 1))


def order(quick: bool, cells: list[tuple[int, int, int]]) -> list[tuple[Cell, int]]:
    """The rounds in the order in which they are made: what tells most first, since time may end.

    Cells that were asked for are measured again and again; alone, a stream is too short for one wave.
    """
    if cells:
        return [(Cell(*cell, 3 if cell[2] == 1 else 1), number) for number in range(ROUNDS) for cell in cells]
    if quick:
        return [(cell, number) for cell in REHEARSAL for number in range(2)]
    firsts = [(cell, number) for cell in TELLING for number in range(3)]
    return [
        *firsts,
        *((cell, number) for cell in SLOW for number in range(2)),
        *((cell, 2) for cell in SLOW),
        *((cell, 0) for cell in LAST),
    ]


def processes(at_once: int) -> int:
    """How many processes make load: one cannot keep up with 30,000 tokens/s."""
    return 1 if at_once < 16 else 2 if at_once < 128 else 4


async def measure(context: Context, result: Result) -> None:
    """Measure cell by cell until all are done or the budget ends."""
    args: dict[str, Any] = {"stream_interval": 1}
    if context.cuda:
        args |= {"cuda_graph_max_bs_decode": 512, "max_total_tokens": POOL[context.size], "mem_fraction_static": 0.88}
    model = model_of(context, args)
    result.data |= {"arguments": model["args"], "runs": [], "medians": [], "failures": []}
    began = time.monotonic()
    loaders = context.pick(4, 2)
    failures: list[str] = result.data["failures"]
    async with all_ways(context, model, min(START, context.left - context.pick(90, 20)), loaders, failures) as ways:
        result.data["start s"] = round(time.monotonic() - began, 1)
        await _warm_up(context, ways, result)
        profiled = False
        for cell, number in order(context.quick, context.cells):
            if context.left < REST:
                result.data["not measured from"] = f"{cell}, round {number}"
                break
            wanted = number == 0 and cell != TELLING[0] and not context.cells
            asked = wanted and context.cuda and "troupe nats" in ways
            if asked and not profiled:
                profiled = True
                result.data["profile"] = await profile.take(context, ways["troupe nats"])
                result.save()
            await _round(context, ways, cell, number, result)
    if result.data["medians"]:
        print(table([_shown(each) for each in result.data["medians"]]), flush=True)
    if failures:
        raise RuntimeError("; ".join(failures))


async def _warm_up(context: Context, ways: dict[str, Way], result: Result) -> None:
    """Have every shape of kernel compiled, and every process imported what it needs at its first request."""
    began = time.monotonic()
    shapes = context.pick([(1, 128, 8), (32, 128, 16), (4, 2_000, 4), (256, 128, 8)], [(2, 16, 4)])
    for way in ways.values():
        for seed, (streams, length, tokens) in enumerate(shapes):
            job = Job(streams=streams, length=length, tokens=tokens, seed=900 + seed, vocabulary=context.vocabulary)
            await way.run(job, processes(streams))
    result.data["warm-up s"] = round(time.monotonic() - began, 1)


async def _round(context: Context, ways: dict[str, Way], cell: Cell, number: int, result: Result) -> None:
    """All ways once, each round beginning with another, each with prompts that none has had."""
    runs: list[dict[str, Any]] = result.data["runs"]
    names = list(ways)
    turn = number % max(1, len(names))
    for name in names[turn:] + names[:turn]:
        job = Job(
            streams=cell.at_once,
            waves=cell.waves,
            length=cell.length,
            tokens=cell.tokens,
            seed=1_000 + len(runs),
            vocabulary=context.vocabulary,
            deadline=max(20.0, min(240.0, context.left + 20)),
        )
        try:
            seen = await ways[name].run(job, processes(cell.at_once))
        except (RuntimeError, TimeoutError, AssertionError, OSError) as error:
            result.data["failures"].append(f"{name}, {cell}: {type(error).__name__}: {error}")
            del ways[name]
            continue
        runs.append({"cell": str(cell), "way": name, "round": number} | seen)
    result.data["medians"] = medians(runs)
    result.save()


def medians(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each cell and way: medians over the rounds, and tokens/s as a share of the bare engine's."""
    rows: list[dict[str, Any]] = []
    base: dict[str, float] = {}
    for cell in dict.fromkeys(run["cell"] for run in runs):
        for name in ("engine", "server", "troupe nats", "troupe http"):
            found = [run for run in runs if (run["cell"], run["way"]) == (cell, name)]
            if not found:
                continue
            keys = [key for key, value in found[0].items() if isinstance(value, float)]
            row = {key: median([run[key] for run in found]) for key in keys}
            base.setdefault(cell, row["tokens/s"])
            cpu = {key: median([run["CPU us/token"][key] for run in found]) for key in found[0]["CPU us/token"]}
            rows.append(
                {"cell": cell, "way": name, "rounds": len(found), "of engine": row["tokens/s"] / base[cell]}
                | row
                | {"CPU us/token": cpu}
            )
    return rows


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("CPU us/token", "seconds")}
