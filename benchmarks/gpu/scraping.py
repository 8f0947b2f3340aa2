"""What the publisher tells Prometheus, read by name and slot."""

import asyncio
import time

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.gpu.cluster import Cluster

Figures = dict[tuple[str, str], float]
SECONDS = 10.0


def publisher(troupe: Cluster) -> str:
    """The address of the cluster's metrics; raises LookupError if no publisher is registered."""
    for one in troupe.registrations.known.values():
        if one.role == "publisher" and one.http:
            return one.http.rstrip("/")
    raise LookupError("no publisher is registered")


async def scrape(session: aiohttp.ClientSession, url: str) -> Figures:
    """Every sample that has a slot, those of one slot and name added up."""
    async with session.get(f"{url}/metrics", timeout=aiohttp.ClientTimeout(total=SECONDS)) as answer:
        answer.raise_for_status()
        text = await answer.text()
    found: Figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if "slot" in sample.labels and not sample.name.endswith("_bucket"):
                key = (sample.name, sample.labels["slot"])
                found[key] = found.get(key, 0.0) + sample.value
    return found


async def scrape_until_more(
    session: aiohttp.ClientSession, url: str, before: Figures, name: str, slot: str, seconds: float
) -> Figures | None:
    """Scrape until that one has grown; None if it has not within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = await scrape(session, url)
        if now.get((name, slot), 0.0) > before.get((name, slot), 0.0):
            return now
        await asyncio.sleep(0.05)
    return None
