"""Answers in the form of OpenAI's API: bodies, and stream chunks from templates made once for each request."""

from codecs import getincrementaldecoder
from typing import Any, Final

import msgspec

from actors.processor.journal import Outcome, Piece
from actors.processor.refusal import RefusalError
from messages import codec
from messages.config import Model
from messages.submit import Done, Error, Likely, Logprob, ToolCall, Usage

END: Final = b"data: [DONE]\n\n"
_Decoder: Final = getincrementaldecoder("utf-8")

TYPES: Final[dict[int, str]] = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    499: "cancelled_error",
    503: "service_unavailable_error",
}
"""What OpenAI's clients call the errors of a code; 500 and all others are `server_error`."""

NAMES: Final[dict[int, str]] = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "deadline_exceeded",
    409: "conflict",
    413: "too_large",
    429: "full",
    499: "cancelled",
    500: "engine_error",
    503: "unavailable",
}


class Chat:
    """The form of one chat completion, of one choice or several."""

    def __init__(self, job: Outcome, model: str) -> None:
        self.id = f"chatcmpl-{job.id}"
        self._model = model
        self._created = int(job.started)
        self._bare = _bare(self.id, "chat.completion.chunk", self._created, model)
        self._heads: dict[int, bytes] = {}
        self._begun: set[int] = set()

    def _head(self, index: int) -> bytes:
        head = self._heads.get(index)
        if head is None:
            head = self._heads[index] = self._bare + b',"choices":[{"index":%d,"delta":{' % index
        return head

    def chunk(self, piece: Piece) -> bytes:
        """Write what came as a chunk of the stream; nothing if nothing of it is to be shown yet."""
        begun = piece.index in self._begun
        parts = []
        if not begun:
            parts.append(b'"role":"assistant"')
        if piece.reasoning:
            parts.append(b'"reasoning_content":' + codec.to_json(piece.reasoning))
        if piece.text or not (begun or piece.reasoning or piece.tool_calls):
            parts.append(b'"content":' + codec.to_json(piece.text))
        if piece.tool_calls:
            parts.append(b'"tool_calls":' + codec.to_json(piece.tool_calls))
        data = b""
        if parts or piece.logprobs:
            if not begun:
                self._begun.add(piece.index)
            logprobs = b',"logprobs":' + codec.to_json(_chat_logprobs(piece)) if piece.logprobs else b""
            data = self._head(piece.index) + b",".join(parts) + b"}" + logprobs + b',"finish_reason":null}]}\n\n'
        return data + self._finish(piece.index, piece.finish_reason) if piece.finish_reason else data

    def _finish(self, index: int, reason: str) -> bytes:
        begun = b"" if index in self._begun else b'"role":"assistant","content":""'
        return self._head(index) + begun + b'},"finish_reason":"' + reason.encode() + b'"}]}\n\n'

    def end(self, done: Done, include_usage: bool) -> bytes:
        """Write the end of the stream; of several choices each has had its own."""
        data = self._finish(0, done.finish_reason) if not done.finish_reasons else b""
        return data + _end(self._bare, done, include_usage)

    def whole(self, pieces: list[Piece], done: Done) -> bytes:
        """Write the whole answer."""
        by_choice = {piece.index: piece for piece in pieces}
        choices = [
            self._choice(index, by_choice.get(index), reason)
            for index, reason in enumerate(done.finish_reasons or [done.finish_reason])
        ]
        return _whole(self.id, "chat.completion", self._created, self._model, choices, done)

    def _choice(self, index: int, piece: Piece | None, reason: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": piece.text if piece is not None else ""}
        choice: dict[str, Any] = {"index": index, "message": message}
        if piece is not None and piece.reasoning:
            message["reasoning_content"] = piece.reasoning
        if piece is not None and piece.tool_calls:
            message["tool_calls"] = joined(piece.tool_calls)
            message["content"] = message["content"] or None
        if piece is not None and piece.logprobs:
            choice["logprobs"] = _chat_logprobs(piece)
        return choice | {"finish_reason": reason}


class Completion:
    """The form of one text completion, of one choice or several."""

    def __init__(self, job: Outcome, model: str) -> None:
        self.id = f"cmpl-{job.id}"
        self._model = model
        self._created = int(job.started)
        self._bare = _bare(self.id, "text_completion", self._created, model)
        self._offsets: dict[int, Offsets] = {}

    def chunk(self, piece: Piece) -> bytes:
        """Write what came as a chunk of the stream; nothing if nothing of it is to be shown yet."""
        data = b""
        if piece.text or piece.logprobs:
            logprobs = b',"logprobs":' + codec.to_json(self._logprobs(piece)) if piece.logprobs else b""
            data = self._head(piece.index) + codec.to_json(piece.text) + logprobs + b',"finish_reason":null}]}\n\n'
        return data + self._finish(piece.index, piece.finish_reason) if piece.finish_reason else data

    def _head(self, index: int) -> bytes:
        return self._bare + b',"choices":[{"index":%d,"text":' % index

    def _finish(self, index: int, reason: str) -> bytes:
        return self._head(index) + b'"","finish_reason":"' + reason.encode() + b'"}]}\n\n'

    def end(self, done: Done, include_usage: bool) -> bytes:
        """Write the end of the stream; of several choices each has had its own."""
        data = self._finish(0, done.finish_reason) if not done.finish_reasons else b""
        return data + _end(self._bare, done, include_usage)

    def whole(self, pieces: list[Piece], done: Done) -> bytes:
        """Write the whole answer."""
        by_choice = {piece.index: piece for piece in pieces}
        choices: list[dict[str, Any]] = []
        for index, reason in enumerate(done.finish_reasons or [done.finish_reason]):
            piece = by_choice.get(index)
            choice: dict[str, Any] = {"index": index, "text": piece.text if piece is not None else ""}
            if piece is not None and piece.logprobs:
                choice["logprobs"] = self._logprobs(piece)
            choices.append(choice | {"finish_reason": reason})
        return _whole(self.id, "text_completion", self._created, self._model, choices, done)

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        """Write log-probabilities as completions have them: lists beside each other."""
        offsets = self._offsets.setdefault(piece.index, Offsets())
        return {
            "tokens": [_token(entry) for entry in piece.logprobs],
            "token_logprobs": [entry.logprob for entry in piece.logprobs],
            "top_logprobs": [
                {_token(other): other.logprob for other in entry.top_logprobs} if entry.logprob is not None else None
                for entry in piece.logprobs
            ],
            "text_offset": [offsets.next(entry) for entry in piece.logprobs],
        }


class Offsets:
    """Where each token of one choice begins in its text, in characters."""

    __slots__ = ("_at", "_decoder")

    def __init__(self) -> None:
        self._at = 0
        self._decoder = _Decoder("replace")

    def next(self, entry: Logprob) -> int:
        """Return where the next token begins."""
        data = bytes(entry.bytes)
        # A character that was begun and is not gone on with becomes U+FFFD, which stands before this token.
        broken = bool(self._decoder.getstate()[0]) and bool(data) and not 0x80 <= data[0] < 0xC0
        at = self._at + broken
        self._at += len(self._decoder.decode(data))
        return at


def _bare(name: str, kind: str, created: int, model: str) -> bytes:
    """Begin each chunk of one stream."""
    return b"data: " + codec.to_json({"id": name, "object": kind, "created": created, "model": model})[:-1]


def _end(bare: bytes, done: Done, include_usage: bool) -> bytes:
    if include_usage:
        return bare + b',"choices":[],"usage":' + codec.to_json(usage(done.usage)) + b"}\n\n" + END
    return END


def _whole(name: str, kind: str, created: int, model: str, choices: list[dict[str, Any]], done: Done) -> bytes:
    return codec.to_json(
        {
            "id": name,
            "object": kind,
            "created": created,
            "model": model,
            "choices": choices,
            "usage": usage(done.usage),
        }
    )


def _chat_logprobs(piece: Piece) -> dict[str, Any]:
    """Write log-probabilities as chats have them: an entry a token."""
    return {
        "content": [_entry(entry) | {"top_logprobs": list(map(_entry, entry.top_logprobs))} for entry in piece.logprobs]
    }


def _entry(entry: Likely) -> dict[str, Any]:
    return {"token": entry.token, "logprob": entry.logprob, "bytes": entry.bytes}


def _token(entry: Likely) -> str:
    """Name a token of a completion: what is no whole text, by its bytes, so that no two have one name."""
    data = bytes(entry.bytes)
    if not data:
        return entry.token
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def usage(counted: Usage) -> dict[str, Any]:
    """Write the usage with the sums that OpenAI's clients expect."""
    return {
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.completion_tokens,
        "total_tokens": counted.prompt_tokens + counted.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counted.cached_tokens},
    }


def joined(pieces: list[ToolCall]) -> list[dict[str, Any]]:
    """Put the pieces of tool calls together, call by call."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        call = calls.setdefault(
            piece.index or 0, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = piece.id or call["id"]
        call["function"]["name"] = piece.function.name or call["function"]["name"]
        call["function"]["arguments"] += piece.function.arguments
    return list(calls.values())


def error(failure: RefusalError | Error) -> bytes:
    """Write an error as a body."""
    name = NAMES.get(failure.code, "server_error")
    if failure.code == 404 and failure.param == "model":
        name = "model_not_found"
    return codec.to_json(
        {
            "error": {
                "message": failure.message,
                "type": TYPES.get(failure.code, "server_error"),
                "param": failure.param,
                "code": name,
            }
        }
    )


def error_chunk(failure: Error) -> bytes:
    """Write an error that comes after a stream has begun."""
    return b"data: " + error(failure) + b"\n\n" + END


def model_list(model: Model, created: int, context_length: int, shown: bool) -> bytes:
    """Write the list of models: the one that is here, if it is ready, with the endpoint kinds that it serves."""
    entry: dict[str, Any] = {"id": model.name, "object": "model", "created": created, "owned_by": "troupe"}
    entry["serves"] = model.served
    if context_length:
        entry["max_model_len"] = context_length
    return msgspec.json.encode({"object": "list", "data": [entry] if shown else []})
