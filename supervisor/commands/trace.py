"""`troupe trace`: the way of one request through the cluster, with times; never what was asked or answered."""

import asyncio
import time
from argparse import Namespace

import msgspec

from messages.bus import BusError
from messages.ids import short
from messages.subjects import Subjects
from messages.telemetry import Way
from messages.ways import processors, request_id, ways
from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import connected, folder_of, pretty, record_of, say, table
from supervisor.state import ClusterRecord


def trace(options: Namespace) -> Code:
    """Show a request's way; the exit code says whether any processor remembers it."""
    try:
        request = request_id(options.ID)
    except ValueError as error:
        raise CommandError(Code.USAGE, str(error).replace("; leave it out to have one made", "")) from None
    asked, found = asyncio.run(_find(record_of(folder_of(options)), request))
    if not found:
        raise CommandError(
            Code.FAILED,
            f"no processor knows request {request} ({', '.join(asked) or 'none is there'}); each remembers its last "
            "2000 requests, until it is restarted",
        )
    say(pretty([msgspec.to_builtins(way) for way in found]) if options.json else "\n\n".join(map(as_text, found)))
    return Code.OK


async def _find(record: ClusterRecord, request: str) -> tuple[list[str], list[Way]]:
    subjects = Subjects(record.cluster)
    async with connected(record) as bus:
        try:
            asked = await processors(await bus.bucket(subjects.registry_bucket))
            return asked, await ways(bus, subjects, asked, request)
        except BusError as error:
            raise CommandError(Code.FAILED, f"the processors cannot be asked: {error}") from None


def as_text(way: Way) -> str:
    """Lay a way out for people: a line a station, with the time of day and the seconds since the first."""
    end = f"code {way.code}" if way.code else "under way"
    head = f"request {way.request} ({way.kind}) in {short(way.slot, way.generation)}: {end}"
    head += f", attempt {way.attempt}, {way.prompt_tokens} tokens in, {way.tokens} out"
    begin = way.stations[0].at if way.stations else 0.0
    rows = [["TIME", "AFTER", "WHAT", "WHERE", "WHY"]]
    for station in way.stations:
        clock = time.strftime("%H:%M:%S", time.localtime(station.at)) + f"{station.at % 1:.3f}"[1:]
        what = station.what.replace("_", " ")
        rows.append([clock, f"{station.at - begin:.3f} s", what, ", ".join(station.where), station.why])
    untold = f"\n{way.untold} of them, before the last ones, are not told" if way.untold else ""
    return f"{head}\n{table(rows)}{untold}"
