"""`troupe submit`: ask a model something and read the answer as it comes, or have a text turned into a vector."""

import asyncio
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from typing import Any

from messages import codec
from messages.bus import BusError
from messages.client import Client, RequestError
from messages.config import Nats
from messages.submit import Delta, Done
from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import folder_of, pretty, record_of, say

FIELDS = ("max_tokens", "temperature", "timeout")


def submit(options: Namespace) -> Code:
    """Submit a prompt as a chat's one message; the answer goes to stdout, what is wrong to stderr."""
    prompt = sys.stdin.read() if options.PROMPT == "-" else options.PROMPT
    nats, prefix, model = _where(options)
    return asyncio.run(_submit(options, prompt, nats, prefix, model))


async def _submit(options: Namespace, prompt: str, nats: Nats, prefix: str, model: str) -> Code:
    fields: dict[str, Any] = {name: getattr(options, name) for name in FIELDS if getattr(options, name) is not None}
    messages = [{"role": "user", "content": prompt}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    try:
        async with Client(nats, prefix=prefix) as troupe:
            if options.embed:
                await _embed(troupe, model, prompt, options)
                return Code.OK
            await _show(troupe.chat(model, messages, **fields), stream=not options.no_stream, as_json=options.json)
    except RequestError as error:
        raise CommandError(Code.REFUSED, f"{model}: {error.message} ({error.code})") from None
    except BusError as error:
        raise CommandError(Code.NOT_RUNNING, str(error)) from None
    return Code.OK


async def _embed(troupe: Client, model: str, prompt: str, options: Namespace) -> None:
    """Write a text's vector: its numbers alone, or with the usage."""
    fields = {} if options.timeout is None else {"timeout": options.timeout}
    answer = await troupe.embed(model, prompt, **fields)
    vector = answer.vectors[0].tolist()
    found = {"id": answer.id, "embedding": vector, "usage": answer.usage}
    say(pretty(found) if options.json else codec.to_json(vector).decode())


async def _show(answers: AsyncIterator[Delta | Done], *, stream: bool, as_json: bool) -> None:
    """Write what comes: text as it comes or all at once, or JSON, a line an event or one object."""
    text: list[str] = []
    tokens: list[int] = []
    async for answer in answers:
        if stream and as_json:
            say(codec.to_json(answer).decode())
        elif isinstance(answer, Delta):
            text.append(answer.text)
            tokens += answer.token_ids
            if stream:
                sys.stdout.write(answer.text)
                sys.stdout.flush()
        elif as_json:
            say(
                pretty(
                    {"id": answer.id, "text": "".join(text), "token_ids": tokens}
                    | {"finish_reason": answer.finish_reason, "usage": answer.usage}
                )
            )
        else:
            say("" if stream else "".join(text))


def _where(options: Namespace) -> tuple[Nats, str, str]:
    """Say which NATS, which cluster and which model are meant."""
    if options.nats is not None:
        if options.model is None:
            raise CommandError(Code.USAGE, "--nats needs --model too: there is no state folder to look it up in")
        return Nats(url=options.nats), options.cluster, options.model
    record = record_of(folder_of(options))
    names = sorted(record.models.values())
    model = options.model or (names[0] if len(names) == 1 else None)
    if model is None:
        raise CommandError(Code.USAGE, f"--model is needed: this cluster serves {', '.join(names)}")
    if model not in names:
        raise CommandError(Code.USAGE, f"there is no model {model!r} here; this cluster serves {', '.join(names)}")
    return record.nats, record.cluster, model
