"""The processor as an actor: loads tokenizer and template, opens the doors, drains them."""

from typing import ClassVar

import msgspec

from actors.actor import Actor, Ending, Setup
from actors.processor.door_nats import NatsDoor
from actors.processor.files import FilesError
from actors.processor.intake import Intake
from actors.processor.service import Service
from actors.processor.template import Template
from actors.processor.tokenizer import Tokenizer
from messages.ids import Role
from messages.lifecycle import Exit, Heartbeat, Registration


class Processor(Actor):
    """Serves one model's clients."""

    role: ClassVar[Role] = "processor"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._intake: Intake
        self._service: Service
        self._nats: NatsDoor

    def load(self) -> None:
        """Read the tokenizer and the chat template; what is wrong with them no restart can mend."""
        try:
            tokenizer = Tokenizer(self.model.tokenizer or self.model.path or "")
            template = Template.load(tokenizer.folder, tokenizer.settings, tokenizer.special, self.model.chat_template)
            self._intake = Intake(self.model, tokenizer, template)
        except (FilesError, ValueError) as error:
            raise Ending(Exit.CONFIG, str(error)) from error

    async def open(self) -> None:
        """Listen to the others, then open the doors."""
        self._service = Service(
            bus=self.bus,
            subjects=self.subjects,
            model=self.model,
            incarnation=self.incarnation,
            intake=self._intake,
            own=self.own,
        )
        await self._service.open(self.registry, self.gates)
        self._nats = NatsDoor(self.bus, self.subjects, self._service, self.incarnation, self.own)
        await self._nats.open()

    def registration(self) -> Registration:
        """Say what this processor can, and where its HTTP door is."""
        return msgspec.structs.replace(
            self.plain_registration(),
            capacity=self.model.limits.in_flight,
            context_length=self._intake.context_length,
            vocab_size=self._intake.vocab_size,
        )

    def heartbeat(self) -> Heartbeat:
        """Say how many requests are in flight, and how many wait."""
        return msgspec.structs.replace(
            self.plain_heartbeat(),
            capacity=self.model.limits.in_flight,
            in_flight=len(self._service.journal),
            queued=len(self._service.line),
        )

    async def drain(self) -> None:
        """Shut the doors, finish what is there."""
        await self._nats.shut()
        await self._service.drain()

    async def abort(self) -> None:
        """End what is left, each with its error."""
        await self._service.abort()
