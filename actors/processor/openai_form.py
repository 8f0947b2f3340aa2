"""Answers in the form of OpenAI's API: bodies, and stream chunks from templates made once for each request."""

from typing import Any, Final

import msgspec

from actors.processor.journal import Job, Piece
from actors.processor.refusal import RefusalError
from messages import codec
from messages.submit import Done, Error, ToolCall, Usage

END: Final = b"data: [DONE]\n\n"

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
    """The form of one chat completion."""

    object: Final = "chat.completion"

    def __init__(self, job: Job, model: str) -> None:
        self.id = f"chatcmpl-{job.id}"
        self._model = model
        self._created = int(job.started)
        head = codec.to_json(
            {"id": self.id, "object": "chat.completion.chunk", "created": self._created, "model": model}
        )[:-1]
        self._head = b"data: " + head + b',"choices":[{"index":0,"delta":{'
        self._bare = b"data: " + head
        self._begun = False

    def chunk(self, piece: Piece) -> bytes:
        """Write what came as a chunk of the stream; nothing if nothing of it is to be shown yet."""
        parts = []
        if not self._begun:
            parts.append(b'"role":"assistant"')
        if piece.reasoning:
            parts.append(b'"reasoning_content":' + codec.to_json(piece.reasoning))
        if piece.text or not (self._begun or piece.reasoning or piece.tool_calls):
            parts.append(b'"content":' + codec.to_json(piece.text))
        if piece.tool_calls:
            parts.append(b'"tool_calls":' + codec.to_json(piece.tool_calls))
        if not parts:
            return b""
        self._begun = True
        return self._head + b",".join(parts) + b'},"finish_reason":null}]}\n\n'

    def end(self, done: Done, include_usage: bool) -> bytes:
        """Write the end of the stream."""
        begun = b"" if self._begun else b'"role":"assistant","content":""'
        data = self._head + begun + b'},"finish_reason":"' + done.finish_reason.encode() + b'"}]}\n\n'
        if include_usage:
            data += self._bare + b',"choices":[],"usage":' + codec.to_json(usage(done.usage)) + b"}\n\n"
        return data + END

    def whole(self, piece: Piece | None, done: Done) -> bytes:
        """Write the whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": piece.text if piece is not None else ""}
        if piece is not None and piece.reasoning:
            message["reasoning_content"] = piece.reasoning
        if piece is not None and piece.tool_calls:
            message["tool_calls"] = joined(piece.tool_calls)
            message["content"] = message["content"] or None
        return codec.to_json(
            {
                "id": self.id,
                "object": "chat.completion",
                "created": self._created,
                "model": self._model,
                "choices": [{"index": 0, "message": message, "finish_reason": done.finish_reason}],
                "usage": usage(done.usage),
            }
        )


class Completion:
    """The form of one text completion."""

    def __init__(self, job: Job, model: str) -> None:
        self.id = f"cmpl-{job.id}"
        self._model = model
        self._created = int(job.started)
        self._bare = (
            b"data: "
            + codec.to_json({"id": self.id, "object": "text_completion", "created": self._created, "model": model})[:-1]
        )
        self._head = self._bare + b',"choices":[{"index":0,"text":'

    def chunk(self, piece: Piece) -> bytes:
        """Write what came as a chunk of the stream; nothing if nothing of it is to be shown yet."""
        if not piece.text:
            return b""
        return self._head + codec.to_json(piece.text) + b',"finish_reason":null}]}\n\n'

    def end(self, done: Done, include_usage: bool) -> bytes:
        """Write the end of the stream."""
        data = self._head + b'"","finish_reason":"' + done.finish_reason.encode() + b'"}]}\n\n'
        if include_usage:
            data += self._bare + b',"choices":[],"usage":' + codec.to_json(usage(done.usage)) + b"}\n\n"
        return data + END

    def whole(self, piece: Piece | None, done: Done) -> bytes:
        """Write the whole answer."""
        text = piece.text if piece is not None else ""
        return codec.to_json(
            {
                "id": self.id,
                "object": "text_completion",
                "created": self._created,
                "model": self._model,
                "choices": [{"index": 0, "text": text, "finish_reason": done.finish_reason}],
                "usage": usage(done.usage),
            }
        )


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


def model_list(name: str, created: int, context_length: int, shown: bool) -> bytes:
    """Write the list of models: the one that is served, if it is ready."""
    entry: dict[str, Any] = {"id": name, "object": "model", "created": created, "owned_by": "troupe"}
    if context_length:
        entry["max_model_len"] = context_length
    return msgspec.json.encode({"object": "list", "data": [entry] if shown else []})
