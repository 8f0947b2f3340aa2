"""What the engine's own tokenizer costs: two engines side by side, one with it and one without, tokens/s and memory."""

from contextlib import AsyncExitStack
from typing import Any

from benchmarks.gpu.cluster import cluster
from benchmarks.gpu.context import Context, Result
from benchmarks.gpu.jobs import Job
from benchmarks.gpu.overhead import processes
from benchmarks.gpu.ways import Way, doers_of, loader
from benchmarks.rig import median, table
from messages import procfs

KINDS = {"with": True, "without": False}


async def measure(context: Context, result: Result) -> None:
    """Ask both in turns, over NATS in token ids, so that nobody else has to do with text."""
    share = {"share_gpus": True, "memory_share": 0.35} if context.cuda else {}
    cast = {"processor": {"http": {"port": 0}}, "decode": {"capacity": context.pick(256, 16)} | share}
    models = [context.model(name, cast, engine_tokenizer=on) for name, on in KINDS.items()]
    wait = min(300.0, context.left - 30)
    async with cluster(context.scratch / "troupe", context.config(models), wait) as running, AsyncExitStack() as stack:
        result.data |= {"start s": round(running.seconds, 1), "runs": [], "medians": []}
        url = ",".join(running.status.nats)
        ways = {}
        for name in KINDS:
            made = [await loader(stack, context, "nats", url, name) for _ in range(context.pick(4, 1))]
            ways[name] = Way(name, made, doers_of(running, name))
        for name, way in ways.items():
            await way.run(_job(context, 32, 16, 1), processes(32))
            result.data.setdefault("processes", {})[name] = [
                {"name": procfs_name(pid), "RSS MiB": procfs.rss_bytes(pid) >> 20}
                for pids in way.doers.values()
                for pid in pids
            ]
        result.save()
        for number in range(context.pick(5, 2)):
            for at_once in context.pick((128, 1), (4,)):
                await _round(context, ways, at_once, number, result)
            if context.left < 10:
                break
        result.data["RSS MiB after"] = {
            name: {kind: sum(map(procfs.rss_bytes, pids)) >> 20 for kind, pids in way.doers.items()}
            for name, way in ways.items()
        }
    print(table([{key: row[key] for key in row if key != "CPU us/token"} for row in result.data["medians"]]))


async def _round(context: Context, ways: dict[str, Way], at_once: int, number: int, result: Result) -> None:
    names = list(ways) if number % 2 else list(ways)[::-1]
    runs: list[dict[str, Any]] = result.data["runs"]
    for name in names:
        job = _job(context, at_once, context.pick(256, 8), 7_000 + len(runs))
        seen = await ways[name].run(job, processes(at_once))
        runs.append({"tokenizer": name, "at once": at_once, "round": number} | seen)
    rows = []
    for key in dict.fromkeys((run["tokenizer"], run["at once"]) for run in runs):
        found = [run for run in runs if (run["tokenizer"], run["at once"]) == key]
        numbers = {name: median([run[name] for run in found]) for name in seen if name != "CPU us/token"}
        cpu = {name: median([run["CPU us/token"][name] for run in found]) for name in found[0]["CPU us/token"]}
        rows.append({"tokenizer": key[0], "at once": key[1], "rounds": len(found)} | numbers | {"CPU us/token": cpu})
    result.data["medians"] = rows
    result.save()


def _job(context: Context, streams: int, tokens: int, seed: int) -> Job:
    length = context.pick(128, 16)
    streams = context.pick(streams, min(streams, 4))
    return Job(streams=streams, waves=2, length=length, tokens=tokens, seed=seed, vocabulary=context.vocabulary)


def procfs_name(pid: int) -> str:
    """What a process calls itself."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()[:80]
    except OSError:
        return "gone"
