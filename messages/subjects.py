"""Every subject and bucket of a cluster, built here and nowhere else; `docs/subjects.md` is made from this table."""

import re
from typing import Final, Literal, NamedTuple, get_args

from messages.ids import TOKEN, Role

VERSION: Final = "v1"
LONGEST_REPLY: Final = 1_024
_REPLY: Final = re.compile(r"[^\s*>.\x00-\x20\x7f]+(?:\.[^\s*>.\x00-\x20\x7f]+)*")

Kind = Literal["chat", "completion", "generate", "embed"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
Verb = Literal[
    "drain",
    "exit",
    "abort",
    "ping",
    "promote",
    "pause",
    "resume",
    "flush",
    "profile",
    "fault",
    "trace",
    "traffic",
    "log-level",
    "sleep",
    "wake",
]
VERBS: Final[tuple[Verb, ...]] = get_args(Verb)
Topic = Literal["actor", "gate", "restart", "drill"]
TOPICS: Final[tuple[Topic, ...]] = get_args(Topic)
ORDERS: Final = ("status", "drain", "restart", "log-level")


class Line(NamedTuple):
    """One line of the table of subjects, for the documentation."""

    pattern: str
    what: str
    sender: str
    listener: str
    message: str


class Subjects:
    """The subjects of one cluster, by its prefix.

    Raises ValueError for a prefix, or a part of a subject, that is no token of `A-Z a-z 0-9 - _`.
    """

    def __init__(self, prefix: str = "troupe") -> None:
        self.prefix = _token(prefix)
        self._root = f"{self.prefix}.{VERSION}"
        self.registry_bucket = f"{self.prefix}_registry"
        self.gate_bucket = f"{self.prefix}_gate"
        self.event_stream = f"{self.prefix}_events"

    def may_answer(self, reply: str) -> bool:
        """Whether a stranger's reply subject may be published to: an inbox of any kind, and none that others act upon.

        Else whoever may only submit could have us speak to actors, to JetStream and to the server itself.
        """
        if not reply or reply.startswith(("$", f"{self._root}.")) or len(reply) > LONGEST_REPLY:
            return False
        return _REPLY.fullmatch(reply) is not None

    def submit(self, alias: str, kind: str) -> str:
        """Where a client's request goes."""
        return f"{self._root}.submit.{_token(alias)}.{_token(kind)}"

    def submits(self, alias: str) -> str:
        """All kinds of requests for one model."""
        return f"{self._root}.submit.{_token(alias)}.*"

    def cancel(self, request: str) -> str:
        """Where a client says that it wants no more."""
        return f"{self._root}.cancel.{_token(request)}"

    @property
    def cancels(self) -> str:
        """All cancellations; their last token is the request id."""
        return f"{self._root}.cancel.*"

    def own(self, request: str) -> str:
        """Where a processor says that it owns a request."""
        return f"{self._root}.own.{_token(request)}"

    @property
    def owns(self) -> str:
        """All claims of ownership."""
        return f"{self._root}.own.*"

    def work(self, alias: str, role: Role, slot: str | None = None) -> str:
        """Work for one slot, or (without a slot) for any ready actor of the role."""
        shared = f"{self._root}.work.{_token(alias)}.{role}"
        return shared if slot is None else f"{shared}.{_token(slot)}"

    def out(self, processor: str) -> str:
        """Frames for one processor incarnation."""
        return f"{self._root}.out.{_token(processor)}"

    def ack(self, sender: str) -> str:
        """Acknowledgements for the frames that one GPU actor's incarnation sends."""
        return f"{self._root}.ack.{_token(sender)}"

    def control(self, slot: str, verb: str) -> str:
        """One control verb for one slot."""
        return f"{self._root}.ctl.{_token(slot)}.{_token(verb)}"

    def controls(self, slot: str) -> str:
        """Every control verb for one slot."""
        return f"{self._root}.ctl.{_token(slot)}.*"

    def supervise(self, order: str) -> str:
        """What the command line asks of the supervisors."""
        return f"{self._root}.sup.{_token(order)}"

    @property
    def supervises(self) -> str:
        """All that the command line asks; the last token is the order."""
        return f"{self._root}.sup.*"

    def heartbeat(self, role: Role, slot: str) -> str:
        """Heartbeats of one slot."""
        return f"{self._root}.hb.{role}.{_token(slot)}"

    @property
    def heartbeats(self) -> str:
        """Heartbeats of every slot."""
        return f"{self._root}.hb.*.*"

    def event(self, topic: Topic, of: str) -> str:
        """What happened to `of`: a slot for actor and restart, an alias for gate, a run for drill."""
        return f"{self._root}.evt.{topic}.{_token(of)}"

    def events_of(self, topic: Topic) -> str:
        """What happened, of one topic; the last token is whom it happened to."""
        return f"{self._root}.evt.{topic}.*"

    @property
    def events(self) -> str:
        """Everything that happened."""
        return f"{self._root}.evt.>"

    def kv(self, slot: str) -> str:
        """KV events of one slot."""
        return f"{self._root}.kv.{_token(slot)}"

    @property
    def kvs(self) -> str:
        """KV events of every slot; the last token is the slot."""
        return f"{self._root}.kv.*"

    def kv_again(self, slot: str) -> str:
        """Where a receiver of a slot's KV events asks for them again."""
        return f"{self._root}.kv.{_token(slot)}.again"

    def load(self, slot: str) -> str:
        """Load figures of one slot."""
        return f"{self._root}.load.{_token(slot)}"

    @property
    def loads(self) -> str:
        """Load figures of every slot; the last token is the slot."""
        return f"{self._root}.load.*"

    def traffic(self, slot: str) -> str:
        """Traffic figures of one processor."""
        return f"{self._root}.traffic.{_token(slot)}"

    @property
    def traffics(self) -> str:
        """Traffic figures of every processor; the last token is the slot."""
        return f"{self._root}.traffic.*"

    def registration_key(self, role: Role, slot: str) -> str:
        """Key of a slot's registration in the registry bucket."""
        return f"{role}.{_token(slot)}"

    def generation_key(self, slot: str) -> str:
        """Key of a slot's newest generation in the registry bucket."""
        return f"gen.{_token(slot)}"


def _token(text: str) -> str:
    if not TOKEN.fullmatch(text):
        raise ValueError(f"{text!r} cannot stand in a subject: only A-Z a-z 0-9 - _ can, and at least one of them")
    return text


def last_token(subject: str) -> str:
    """Return what stands after a subject's last dot."""
    return subject.rpartition(".")[2]


TABLE: Final[tuple[Line, ...]] = (
    Line(
        "submit.<alias>.<kind>",
        f"a client's request ({', '.join(KINDS)}); answers come to its reply inbox",
        "clients",
        "processors of the model, queue group `q`",
        "submit.Chat, Completion, Generate → submit.Answer; embed.Embed → embed.Answer",
    ),
    Line("cancel.<request id>", "the client wants no more", "clients", "the owning processor", "none"),
    Line(
        "own.<request id>",
        "“I own this request, attempt k”: a lower attempt's owner aborts",
        "processors",
        "processors",
        "work.Own",
    ),
    Line(
        "work.<alias>.<role>",
        "work for any ready actor of the role",
        "processors",
        "ready actors of the role, queue group `q`",
        "work.Work → work.Accept",
    ),
    Line(
        "work.<alias>.<role>.<slot>",
        "work for that one; what the router uses",
        "processors",
        "that slot",
        "work.Work → work.Accept",
    ),
    Line("out.<processor incarnation>", "frames", "GPU actors", "that processor", "frames.Frame"),
    Line(
        "ack.<actor incarnation>",
        "what a processor has received, and what it asks for again",
        "processors",
        "that GPU actor",
        "frames.Receipt",
    ),
    Line(
        "ctl.<slot>.<verb>",
        f"control: {', '.join(VERBS)} (fault only where drills are allowed)",
        "command line, supervisors, processors",
        "that slot",
        "lifecycle.Control → lifecycle.Answer",
    ),
    Line(
        "sup.<order>",
        f"what the command line asks of supervisors: {', '.join(ORDERS)}; the one that has the slot answers",
        "command line",
        "supervisors",
        "supervise.Order → supervise.Said or Status",
    ),
    Line(
        "hb.<role>.<slot>",
        "heartbeat, twice a second",
        "actors",
        "supervisors, processors",
        "lifecycle.Heartbeat",
    ),
    Line(
        "evt.<topic>.<of>",
        f"what happened ({', '.join(TOPICS)}); kept in the JetStream stream `<prefix>_events`",
        "actors, supervisors",
        "supervisors, dashboards, checkers",
        "lifecycle.Event",
    ),
    Line(
        "kv.<slot>",
        "KV events of its engine, numbered without holes; not with `publisher.events: zmq`",
        "the publisher of its host",
        "routers, dashboards",
        "telemetry.KvEvents",
    ),
    Line(
        "kv.<slot>.again",
        "“send me what I have missed”: comes to the reply inbox, an empty message last",
        "routers, dashboards",
        "the publisher of its host",
        "telemetry.Again → telemetry.KvEvents …",
    ),
    Line(
        "load.<slot>",
        "how loaded its engine is, in KV blocks for each DP rank; when it changes",
        "the publisher of its host",
        "routers, dashboards",
        "telemetry.Load",
    ),
    Line(
        "traffic.<slot>",
        "what a processor has counted since its start; once a second at most, when something has changed",
        "processors",
        "supervisors, dashboards",
        "telemetry.Traffic",
    ),
)

BUCKETS: Final[tuple[Line, ...]] = (
    Line(
        "<prefix>_registry", "`<role>.<slot>`: who is registered", "actors", "all, by watch", "lifecycle.Registration"
    ),
    Line(
        "<prefix>_registry",
        "`gen.<slot>`: newest generation",
        "supervisors, external actors",
        "actors",
        "a decimal number",
    ),
    Line("<prefix>_gate", "`<alias>`: the model's gate", "the leading supervisor", "all, by watch", "gate.Gate"),
)


def as_markdown() -> str:
    """Write the tables as the page `docs/subjects.md`."""
    lines = [
        "# Subjects",
        "",
        "Made from `messages/subjects.py` by `python -m messages.subjects`; a test compares the two.",
        f"Every subject starts with `<prefix>.{VERSION}.`; the prefix is the cluster's name, `troupe` by default.",
        "Tokens hold only `A-Z a-z 0-9 - _`.",
        "",
        "| subject | what | from | to | message |",
        "| --- | --- | --- | --- | --- |",
        *(f"| `{line.pattern}` | {line.what} | {line.sender} | {line.listener} | {line.message} |" for line in TABLE),
        "",
        "## Buckets",
        "",
        "| bucket | key and value | written by | read by | message |",
        "| --- | --- | --- | --- | --- |",
        *(f"| `{line.pattern}` | {line.what} | {line.sender} | {line.listener} | {line.message} |" for line in BUCKETS),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    sys.stdout.write(as_markdown())
