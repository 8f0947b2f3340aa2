"""Clients that keep a cluster busy and write down all that they see: over NATS with the library, over HTTP by hand."""

import asyncio
import time
from collections.abc import Callable
from typing import Self

from messages.ids import new_request_id
from supervisor.drills.asking import PAUSE, Asker, Witness
from supervisor.drills.records import Door, Record, Whole
from supervisor.state import ClusterRecord

LOOK = 0.02


class Load:
    """So many clients over NATS and over HTTP, each asking one thing after another until told to stop.

    `prompts` are asked in turn, `tokens` is how many each may have, `limit` the deadline of a request in seconds.
    """

    def __init__(
        self,
        cluster: ClusterRecord,
        prompts: list[str],
        *,
        tokens: int,
        nats: int,
        http: int,
        limit: float = 30.0,
    ) -> None:
        [(alias, model)] = cluster.models.items()
        self._prompts = prompts
        self._counts = {"nats": nats, "http": http}
        self.limit = limit
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._next = 0
        self.client = Witness(cluster.nats, prefix=cluster.cluster)
        http_url = cluster.http.get(alias, "")
        self._asker = Asker(model, prompts, tokens=tokens, http=http_url, client=self.client)
        self.records: list[Record] = []
        self.wholes: list[Whole] = []

    async def __aenter__(self) -> Self:
        """Connect; ask everything once while nothing is wrong, so that later answers can be compared."""
        await self.client.__aenter__()
        try:
            for asked in range(len(self._prompts)):
                record = self._record("nats", asked)
                await self._asker.over_nats(record)
                assert record.outcome == "done", str(record)
                self.wholes.append(Whole(record.token_ids, record.text))
        except BaseException:
            await self.client.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, however it ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.__aexit__()

    def start(self) -> None:
        """Begin to ask."""
        for _ in range(self._counts["nats"]):
            self._tasks.append(asyncio.create_task(self._keep_asking_nats()))
        for _ in range(self._counts["http"]):
            self._tasks.append(asyncio.create_task(self._keep_asking_http()))

    async def stop(self, seconds: float) -> None:
        """Ask nothing more, and wait for the end of what is under way."""
        self._stopping = True
        async with asyncio.timeout(seconds):
            await asyncio.gather(*self._tasks)
        for record in self.records:
            if record.door == "nats":
                self.client.fill(record)

    async def until(self, check: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `check()` holds for what the clients have seen."""
        try:
            async with asyncio.timeout(seconds):
                while not check():
                    for task in self._tasks:
                        if task.done() and not self._stopping:
                            task.result()
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            open_ones = "\n".join(str(record) for record in self.records if record.outcome == "open")
            raise AssertionError(f"not within {seconds:g} s: {what}; under way:\n{open_ones}") from None

    def silent(self, seconds: float) -> bool:
        """Whether nobody has heard anything for so long."""
        return all(time.monotonic() - record.pieces[-1].at > seconds for record in self.records if record.pieces)

    async def until_streaming(self, seconds: float = 30.0) -> None:
        """Wait until every client is in the middle of an answer that it began to get after this call."""
        begun, clients = time.monotonic(), sum(self._counts.values())

        def streaming() -> bool:
            newest = self.records[-2 * clients :]
            return 4 * sum(record.streaming and record.sent >= begun for record in newest) >= 3 * clients

        await self.until(streaming, seconds, "most clients in the middle of a new answer")

    async def until_answered(self, count: int, seconds: float = 30.0) -> None:
        """Wait for so many requests, sent from now on, to end well."""
        begun = time.monotonic()

        def answered() -> bool:
            return sum(record.sent >= begun and record.outcome == "done" for record in self.records) >= count

        await self.until(answered, seconds, f"{count} new requests answered")

    def _record(self, door: Door, asked: int) -> Record:
        record = Record(new_request_id(), door, asked, time.monotonic(), self.limit)
        self.records.append(record)
        return record

    def _turn(self) -> int:
        self._next += 1
        return self._next % len(self._prompts)

    async def _keep_asking_nats(self) -> None:
        while not self._stopping:
            await self._asker.over_nats(self._record("nats", self._turn()))

    async def _keep_asking_http(self) -> None:
        while not self._stopping:
            record = self._record("http", self._turn())
            await self._asker.over_http(record)
            if record.outcome != "done":
                await asyncio.sleep(PAUSE)
