"""Which endpoint kinds a model serves, under the names that the doors have for them; what is not served is a 404."""

from typing import Final

from actors.processor.refusal import RefusalError
from messages.config import Model, Served

PATHS: Final[dict[Served, str]] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
}
"""Where each kind is on HTTP."""

SUBJECTS: Final[dict[str, Served]] = {"chat": "chat", "completion": "completions", "embed": "embeddings"}
"""Which endpoint kind a kind of request on NATS is; `generate` is none of them, whoever generates takes it."""


def check_path(model: Model, path: str) -> None:
    """Raise RefusalError 404 for the path of an endpoint that the model does not serve; other paths are let through."""
    for kind, place in PATHS.items():
        if path == place and kind not in model.served:
            there = ", ".join(PATHS[served] for served in model.served)
            raise RefusalError(404, f"{model.name!r} does not serve {kind}{_why(model)}; {_served(there)}")


def check_subject(model: Model, kind: str) -> None:
    """Raise RefusalError 404 for a kind of request on NATS that the model does not serve; others are let through."""
    if kind == "generate" and model.text:
        raise RefusalError(404, f"{model.name!r} takes no token ids{_why(model)}; {_served('chat')}")
    if kind == "generate" and model.embeds:
        raise RefusalError(404, f"{model.name!r} does not generate; {_served('embed')}")
    if kind in SUBJECTS and SUBJECTS[kind] not in model.served:
        there = [name for name, served in SUBJECTS.items() if served in model.served]
        there += [] if model.embeds or model.text else ["generate"]
        raise RefusalError(
            404, f"{model.name!r} does not serve {SUBJECTS[kind]}{_why(model)}; {_served(', '.join(there))}"
        )


def _served(what: str) -> str:
    return f"there is {what}" if what else "it serves nothing here"


def _why(model: Model) -> str:
    return ": its engine alone has its tokenizer (text: true)" if model.text else ""
