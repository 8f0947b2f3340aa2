"""The processor as an actor: loads tokenizer and template, opens the doors, drains them."""

import errno
from functools import partial
from typing import ClassVar

import msgspec
from msgspec import Struct

from actors.actor import Actor
from actors.ending import Ending
from actors.hub import HubError
from actors.processor import parsers
from actors.processor.door_http import HttpDoor
from actors.processor.door_nats import NatsDoor
from actors.processor.embeddings.doors import EmbedHttpDoor, EmbedNatsDoor
from actors.processor.embeddings.intake import EmbedIntake
from actors.processor.embeddings.service import EmbedService
from actors.processor.facts import Facts
from actors.processor.files import FilesError
from actors.processor.intake import Intake
from actors.processor.service import Service
from actors.processor.template import Template
from actors.processor.text_intake import TextIntake
from actors.processor.tokenizer import Tokenizer
from actors.setup import Setup
from messages.bus import ServiceError
from messages.config import Http
from messages.ids import Role
from messages.lifecycle import Control, Exit, Heartbeat, Registration


class Processor(Actor):
    """Serves one model's clients."""

    role: ClassVar[Role] = "processor"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._intake: Intake
        self._embed_intake: EmbedIntake
        self._service: Service
        self._nats: NatsDoor
        self._http: HttpDoor | None = None

    def load(self) -> None:
        """Read the tokenizer and the chat template, or what else there is; what is wrong there no restart can mend."""
        try:
            if self.model.text:
                where = self.model.tokenizer or self.model.path or ""
                self._intake = TextIntake(self.model, Facts.find(where, partial(self.report, "download")))
                return
            marks = parsers.marks(self.model.reasoning_parser, self.model.tool_call_parser)
            tokenizer = Tokenizer(
                self.model.tokenizer or self.model.path or "", marks, partial(self.report, "download")
            )
            template = Template.load(tokenizer.folder, tokenizer.settings, tokenizer.special, self.model.chat_template)
            self._intake = Intake(self.model, tokenizer, template)
            if self.model.embeds:
                self._embed_intake = EmbedIntake(self.model, tokenizer, self._intake)
        except HubError as error:
            raise Ending(Exit.CONFIG if error.final else Exit.LOAD, str(error)) from error
        except (FilesError, ValueError) as error:
            raise Ending(Exit.CONFIG, str(error)) from error

    async def open(self) -> None:
        """Listen to the others, then open the doors."""
        http = self.part.http or Http()
        door = self._assemble(http.host, self.http_port or http.port)
        await self._service.open(self.registry, self.gates)
        await self._nats.open()
        if http.enabled:
            self._http = door
            try:
                await door.open()
            except OSError as error:
                code = Exit.INTERNAL if error.errno == errno.EADDRINUSE else Exit.CONFIG
                raise Ending(code, f"the HTTP door cannot be opened: {error}") from error

    def _assemble(self, host: str, port: int) -> HttpDoor:
        """Put the service and its doors together, by what the model does; return the one for HTTP, not open yet."""
        bus, subjects, model, own = self.bus, self.subjects, self.model, self.own
        incarnation, intake = self.incarnation, self._intake
        if model.embeds:
            embeds = EmbedService(
                bus=bus,
                subjects=subjects,
                model=model,
                incarnation=incarnation,
                intake=intake,
                embed_intake=self._embed_intake,
                own=own,
                watch=self.cluster.watch,
            )
            self._service = embeds
            self._nats = EmbedNatsDoor(bus, subjects, embeds, incarnation, own)
            return EmbedHttpDoor(embeds, host, port)
        self._service = Service(
            bus=bus,
            subjects=subjects,
            model=model,
            incarnation=incarnation,
            intake=intake,
            own=own,
            watch=self.cluster.watch,
        )
        self._nats = NatsDoor(bus, subjects, self._service, incarnation, own)
        return HttpDoor(self._service, host, port)

    def registration(self) -> Registration:
        """Say what this processor can, and where its HTTP door is."""
        return msgspec.structs.replace(
            self.plain_registration(),
            capacity=self.model.limits.in_flight,
            context_length=self._intake.context_length,
            vocab_size=self._intake.vocab_size,
            http=reachable(self._http.address, self.part.advertise) if self._http is not None else None,
        )

    def heartbeat(self) -> Heartbeat:
        """Say how many requests are in flight, and how many wait."""
        return msgspec.structs.replace(
            self.plain_heartbeat(),
            capacity=self.model.limits.in_flight,
            in_flight=self._service.in_flight,
            queued=len(self._service.line),
            unanswerable=self._nats.unanswerable,
        )

    def ping(self, asked: Control) -> str:
        """Say that we are here; a client names the request of which it has heard nothing for a while."""
        if asked.request and not self._service.has(asked.request):
            raise ServiceError(404, f"request {asked.request} is not here, or not any more")
        return super().ping(asked)

    async def control(self, verb: str, asked: Control) -> str | Struct:
        """Tell a request's way, or the traffic to whoever listens for it."""
        if verb == "trace":
            if (way := self._service.meter.way(asked.request)) is None:
                raise ServiceError(404, f"request {asked.request[:64]} is not known here, or not any more")
            return way
        if verb == "traffic":
            self._service.teller.tell()
            return "told"
        return await super().control(verb, asked)

    def tick(self) -> None:
        """Tell of the traffic, if there is something new."""
        self._service.teller.tick()

    async def drain(self) -> None:
        """Shut the doors, finish what is there."""
        await self._nats.shut()
        if self._http is not None:
            await self._http.shut()
        await self._service.drain()
        await self._last_word()

    async def abort(self) -> None:
        """End what is left, each with its error."""
        await self._service.abort()
        await self._last_word()

    async def _last_word(self) -> None:
        self._service.teller.tell()
        await self._service.post.flush()

    async def close(self) -> None:
        """Close what connections are left."""
        if self._http is not None:
            await self._http.close()


def reachable(address: str | None, advertise: str) -> str | None:
    """Write a door's address as others use it: where it listens on all of a host's, the one that is advertised."""
    if address is None:
        return None
    host = f"[{advertise}]" if ":" in advertise else advertise
    return address.replace("//0.0.0.0:", f"//{host}:").replace("//[::]:", f"//{host}:")
