"""What is asked and answered, in SGLang's words and in ours; nothing here needs SGLang itself."""

import re
from http import HTTPStatus
from typing import Any, Final

from messages.codec import Ranked
from messages.frames import Finish
from messages.work import Bootstrap, Sampling

MESSAGE_LENGTH: Final = 500
_SOURCE: Final = re.compile(r"\[\d\d:\d\d:\d\d\] \S+\.cc:\d+: ")


def sampling_params(sampling: Sampling, *, prefills: bool) -> dict[str, Any]:
    """Say how to sample in SGLang's words; the prefill side makes just the first token."""
    return {
        "max_new_tokens": 1 if prefills else sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "min_new_tokens": min(sampling.min_tokens, 1) if prefills else sampling.min_tokens,
        "stop_token_ids": sampling.stop_token_ids or None,
        "ignore_eos": sampling.ignore_eos,
        "sampling_seed": sampling.seed,
        "logit_bias": {str(at): bias for at, bias in sampling.logit_bias.items()} or None,
        "json_schema": sampling.json_schema,
        "regex": sampling.regex,
        "ebnf": sampling.ebnf,
    }


def meeting_place(meeting: Bootstrap, *, prefills: bool) -> dict[str, Any]:
    """Say where the two sides meet, in SGLang's words.

    SGLang's decode side remembers prefills by their address, and finds out by a heartbeat each 5 s, of which two must
    fail, that one is gone (`common/conn.py`, `connection_pool` and `heartbeat_checker`, 0.5.17 to 0.5.23). One that is
    back on the same port before that is sent to where the dead one listened, and the request hangs. So decode is given
    an address for each life: its generation as a URL's user name, which SGLang's bootstrap server does not look at. On
    a port that stays, decode goes on asking after the earlier lives, too: a small request each 5 s for each of them.
    """
    host = meeting.host
    if meeting.generation and not prefills:
        host = f"g{meeting.generation}@" + (f"[{host}]" if ":" in host else host)
    return {"bootstrap_host": host, "bootstrap_port": meeting.port, "bootstrap_room": meeting.room}


def finish_of(meta: dict[str, Any], *, prefills: bool, aborted: bool) -> Finish | None:
    """Read SGLang's finish reason; its status may be a number, an `HTTPStatus` or missing.

    What we have aborted is an abort, whatever status SGLang gives it in the queue where it stood.
    """
    reason = meta.get("finish_reason")
    if reason is None:
        return None
    counts = (
        int(meta.get("prompt_tokens") or 0),
        int(meta.get("completion_tokens") or 0),
        int(meta.get("cached_tokens") or 0),
    )
    kind = reason["type"]
    if kind == "abort":
        status = reason.get("status_code")
        message = str(reason.get("message") or "aborted")
        if aborted or status is None:
            return Finish("abort", 499, message, *counts)
        code, message = failure(int(HTTPStatus(status)), message)
        return Finish("error", code, message, *counts)
    if prefills:
        return Finish("prefilled", 0, "", *counts)
    matched = reason.get("matched")
    return Finish(kind, 0, "", *counts, matched if isinstance(matched, int) else None)


def beginning(config: Any, vocab_size: int) -> int:
    """Return the id with which texts begin, by a model's configuration, or else one that is in every vocabulary."""
    for part in (config, getattr(config, "text_config", None)):
        for name in ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(part, name, None)
            token = value[0] if isinstance(value, list | tuple) and value else value
            if isinstance(token, int) and 0 <= token < vocab_size:
                return token
    return 0


def failure(code: int, message: str) -> tuple[int, str]:
    """Say a failure of one request in a line, without the places in the grammar library's source.

    A token that a grammar does not take means that it takes none there: the request's fault, whatever SGLang calls it.
    """
    if "Grammar accept_token failed" in message:
        return 400, "the grammar allows nothing to follow here; perhaps a rule refers to itself without an end"
    return code, _SOURCE.sub("", message.strip()).splitlines()[0][:MESSAGE_LENGTH]


def ranked(meta: dict[str, Any], count: int) -> list[Ranked]:
    """Read the log-probabilities of the newest tokens out of what SGLang says of them."""
    chosen = meta["output_token_logprobs"][-count:]
    likeliest = (meta.get("output_top_logprobs") or [None] * count)[-count:]
    return [
        (first[0], [(other[1], other[0]) for other in others or []])
        for first, others in zip(chosen, likeliest, strict=True)
    ]


def ranked_prompt(meta: dict[str, Any]) -> list[Ranked]:
    """Read the log-probabilities of the prompt's tokens, but the first, of which SGLang knows none."""
    chosen = meta["input_token_logprobs"][1:]
    likeliest = (meta.get("input_top_logprobs") or [None] * (len(chosen) + 1))[1:]
    return [
        (first[0], [(other[1], other[0]) for other in others or []])
        for first, others in zip(chosen, likeliest, strict=True)
    ]
