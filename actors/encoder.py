"""The encoder actor: an embedding engine, which turns the inputs of a request's parts into vectors.

Life of a part: accepted like any other work, cut into inputs, handed to the engine; the vectors go into frames, in
order, each frame small enough for NATS; one finish.
"""

from functools import partial
from typing import ClassVar, Final

from actors.engines.engine import Disaggregation, Encoding, misfit_inputs
from actors.outbox import Outbox
from actors.worker import ACK_GRACE, Doing, Running, Worker
from messages.bus import ServiceError
from messages.embed import FLOAT_BYTES
from messages.frames import Finish
from messages.ids import Role
from messages.work import Encode, Job

FRAME_BYTES: Final = 262_144
"""Bytes of vectors in one frame, at most: four times as many are NATS's own default for a message."""


class Encoder(Worker):
    """Embeds."""

    role: ClassVar[Role] = "encoder"
    kind: ClassVar[type[Job | Encode]] = Encode

    def disaggregation(self) -> Disaggregation:
        """Take no part in any hand-over."""
        return "null"

    def make_outbox(self) -> Outbox:
        """Make what sends to the processors, in frames that NATS takes."""
        self._piece = min(FRAME_BYTES, self.bus.max_payload // 2) // FLOAT_BYTES * FLOAT_BYTES
        return Outbox(
            self.bus,
            self.subjects,
            self.incarnation,
            grace=ACK_GRACE,
            on_gone=self.forget_processor,
            frame_bytes=self._piece,
        )

    def work(self, job: Job | Encode, key: str) -> Doing:
        """Cut a part into its inputs. Raises ServiceError 400 for what does not fit the engine."""
        assert isinstance(job, Encode)
        asked = Encoding(key=key, inputs=inputs_of(job), dimensions=job.dimensions)
        if (why := misfit_inputs(asked, self._info)) is not None:
            raise ServiceError(400, why)
        return partial(self._engine.encode, asked)

    def emit(self, running: Running, tokens: bytes, finish: Finish | None) -> None:
        """Send vectors, one that is larger than a frame in pieces."""
        while len(tokens) > self._piece:
            super().emit(running, tokens[: self._piece], None)
            tokens = tokens[self._piece :]
        super().emit(running, tokens, finish)


def inputs_of(job: Encode) -> list[bytes]:
    """Cut a part's packed token ids into its inputs. Raises ServiceError 400 if they are not as long as it says."""
    if any(length < 0 for length in job.lengths) or 4 * sum(job.lengths) != len(job.prompt):
        raise ServiceError(400, f"{len(job.prompt)} bytes of token ids are not {sum(job.lengths)} tokens")
    inputs, begin = [], 0
    for length in job.lengths:
        inputs.append(job.prompt[4 * begin : 4 * (begin + length)])
        begin += length
    return inputs
