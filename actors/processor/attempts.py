"""What an attempt asks of the actors: the prompt with the tokens so far, and what is left; whether there may be one."""

from typing import Final

from actors.processor.continuing import begins_anew, rest, why_not_continued, work_bytes
from actors.processor.journal import Job
from actors.processor.view import Seat
from messages import codec
from messages.submit import Error
from messages.work import Bootstrap, Decode, Prefill

UNRANKED: Final = "an actor failed on this request before it had told the prompt's log-probabilities"


def works(
    job: Job, prefill: Seat | None, decode: Seat, *, out: str, ttl: float, room: int
) -> tuple[Prefill | None, Decode]:
    """Say what the seats are to do for a job, and come back to `out` with; `room` is where the two of them meet.

    `ttl` is in seconds.
    """
    sampling, prompt = job.asked.sampling, job.packed
    if job.base:
        prompt += codec.pack_tokens(job.tokens[: job.base])
        sampling = rest(sampling, job.base)
    elif sampling.prompt_logprobs and not job.awaiting:
        sampling = rest(sampling, 0)
    meeting = first = None
    if prefill is not None and prefill.registration.bootstrap is not None:
        host, port = prefill.registration.bootstrap
        meeting = Bootstrap(host=host, port=port, room=room, generation=prefill.registration.generation)
        first = Prefill(
            request=job.id,
            attempt=job.attempt,
            out=out,
            prompt=prompt,
            sampling=sampling,
            ttl=ttl,
            generation=prefill.registration.generation,
            bootstrap=meeting,
            chat=job.asked.chat,
        )
    return first, Decode(
        request=job.id,
        attempt=job.attempt,
        out=out,
        prompt=prompt,
        sampling=sampling,
        ttl=ttl,
        generation=decode.registration.generation,
        bootstrap=meeting,
        chat=job.asked.chat,
    )


def why_no_other(job: Job, max_payload: int) -> Error | None:
    """Make the last word of a job that cannot go on elsewhere; None if it can. `max_payload` is in bytes."""
    sampling = job.asked.sampling
    if not job.tokens:
        return None
    if job.awaiting:
        return job.error(500, UNRANKED)
    if (why := why_not_continued(sampling)) is not None:
        return job.error(500, f"an actor failed on this request, and {why}")
    made = 0 if begins_anew(sampling) else len(job.tokens)
    if (size := work_bytes(len(job.asked.prompt) + made, sampling, job.asked.chat_bytes)) > max_payload:
        why = f"its {size} bytes by now are more than the {max_payload} that NATS takes"
        return job.error(413, f"an actor failed on this request, and {why}")
    return None
