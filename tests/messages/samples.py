"""One example of every struct that travels, and what is written down of their shapes."""

from typing import Any

import msgspec
from msgspec import Struct

from messages import codec, embed, gate, lifecycle, prefork, submit, telemetry, work
from messages.frames import Ack, Finish, Frame, Hello, Item, Said
from messages.lifecycle import State

MSGPACK: dict[str, Struct] = {
    "work.Prefill": work.Prefill(
        request="6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f9a01",
        attempt=1,
        out="demo-processor-0-g3",
        prompt=codec.pack_tokens([1, 2, 65_537]),
        sampling=work.Sampling(max_tokens=8, temperature=0.0, stop_token_ids=[2]),
        ttl=12.5,
        generation=7,
        bootstrap=work.Bootstrap(host="127.0.0.1", port=8998, room=1 << 62),
    ),
    "work.Decode": work.Decode(
        request="6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f9a01",
        attempt=0,
        out="demo-processor-0-g3",
        prompt=b"",
        sampling=work.Sampling(max_tokens=1, top_k=4, ignore_eos=True),
        ttl=1.0,
    ),
    "work.Decode with all of it": work.Decode(
        request="6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f9a01",
        attempt=0,
        out="demo-processor-0-g3",
        prompt=b"",
        sampling=work.Sampling(max_tokens=1, seed=-3, logit_bias={7: -100.0}, logprobs=2, json_schema="{}"),
        ttl=1.0,
    ),
    "work.Decode of a chat": work.Decode(
        request="6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f9a01",
        attempt=0,
        out="demo-processor-0-g3",
        prompt=b"",
        sampling=work.Sampling(max_tokens=1),
        ttl=1.0,
        chat=work.Conversation(
            messages=[{"role": "user", "content": "né"}],
            tools=[{"type": "function", "function": {"name": "f"}}],
            words={"enable_thinking": False},
            skip_special_tokens=False,
            marks=["<think>"],
        ),
    ),
    "work.Encode": work.Encode(
        request="6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f9a01/3",
        attempt=1,
        out="demo-processor-0-g3",
        prompt=codec.pack_tokens([1, 2, 65_537]),
        lengths=[2, 1],
        ttl=12.5,
        generation=7,
        dimensions=2,
    ),
    "embed.Vectors": embed.Vectors(id="6f1c8d8e", attempt=1, index=2, dimensions=2, data=embed.pack_floats([0.6, 0.8])),
    "work.Accept": work.Accept(request="6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f9a01", attempt=2, by="demo-decode-0-g7"),
    "work.Own": work.Own(request="6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f9a01", attempt=2, owner="demo-processor-1-g2"),
    "frames.Frame": Frame(
        "demo-decode-0-g7",
        41,
        39,
        [
            Item("6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f9a01", 0, 5, codec.pack_tokens([9])),
            Item("0b7a9d3e-1c55-4a0e-8a51-54b0f9a3c202", 1, 0, b"", Finish("stop", 0, "", 12, 6, 8, 2)),
        ],
    ),
    "frames.Frame with logprobs": Frame(
        "demo-decode-0-g7",
        42,
        39,
        [
            Item(
                "6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f9a01",
                0,
                5,
                codec.pack_tokens([9]),
                None,
                codec.pack_logprobs([(-0.5, [(9, -0.5), (3, -1.25)])]),
            )
        ],
    ),
    "frames.Frame with text": Frame(
        "demo-decode-0-g7",
        43,
        39,
        [
            Item(
                "6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f9a01",
                0,
                0,
                codec.pack_tokens([9]),
                None,
                None,
                Said("né", 7, "<think>"),
            )
        ],
    ),
    "frames.Ack": Ack("demo-processor-0-g3", 41),
    "frames.Hello": Hello("demo-processor-0-g3", 38),
    "submit.Accepted": submit.Accepted(id="6f1c8d8e", attempt=0, owner="demo-processor-0-g3"),
    "submit.Delta": submit.Delta(id="6f1c8d8e", attempt=0, position=3, token_ids=[5, 6], text="né"),
    "submit.Delta with logprobs": submit.Delta(
        id="6f1c8d8e",
        attempt=0,
        position=0,
        token_ids=[5],
        index=2,
        logprobs=[submit.Logprob(id=5, token="n", logprob=-0.5, bytes=[110], top_logprobs=[])],
    ),
    "submit.Done": submit.Done(
        id="6f1c8d8e",
        attempt=0,
        finish_reason="length",
        usage=submit.Usage(prompt_tokens=3, completion_tokens=5, cached_tokens=2),
    ),
    "submit.Done of several": submit.Done(
        id="6f1c8d8e",
        attempt=0,
        finish_reason="length",
        usage=submit.Usage(prompt_tokens=3, completion_tokens=5),
        finish_reasons=["length", "stop"],
    ),
    "submit.Error": submit.Error(id="6f1c8d8e", code=503, message="gate closed", retry_after=2.0),
    "telemetry.KvEvents": telemetry.KvEvents(
        slot="demo-decode-0",
        generation=7,
        dp_rank=1,
        seq=41,
        at=1.5,
        events=[
            telemetry.Stored(hashes=[-5, 1 << 62], parent=3, tokens=codec.pack_tokens([1, 2]), block_size=1, lora="l"),
            telemetry.Removed(hashes=[9], medium="CPU_PINNED"),
            telemetry.Cleared(),
        ],
        lost=2,
        replayed=True,
    ),
    "telemetry.Again": telemetry.Again(generation=7, dp_rank=1, start=12),
    "telemetry.Load": telemetry.Load(
        slot="demo-decode-0", generation=7, at=1.5, ranks=[lifecycle.RankLoad(0, 3, 1, 40, 2_048, 0.25)]
    ),
    "telemetry.Traffic": telemetry.Traffic(
        slot="demo-processor-0",
        generation=3,
        model="demo",
        at=2.5,
        started=1.5,
        queued=4,
        in_flight=9,
        kinds={
            "chat": telemetry.Tally(
                admitted=7,
                finished=5,
                failed={408: 1},
                cancelled=1,
                migrated=2,
                prompt_tokens=40,
                completion_tokens=100,
                ttft=telemetry.Histogram([0, 7], 0.5),
            )
        },
        refused={429: 3},
        false_alarms=1,
        frames=90,
        missed=1,
    ),
}
"""What travels as msgpack: work, frames, telemetry, and answers to clients that speak it."""

JSON: dict[str, Struct] = {
    "submit.Chat": submit.Chat(
        model="demo", id="6f1c8d8e", messages=[submit.Message(role="user", content="Hi")], max_tokens=4, stop="\n"
    ),
    "submit.Completion": submit.Completion(model="demo", prompt=[1, 2], temperature=0.5),
    "submit.Completion of several": submit.Completion(
        model="demo", prompt=["a", [1, 2]], n=2, echo=True, seed=7, logit_bias={"5": -1.0}, regex="a*"
    ),
    "submit.Generate": submit.Generate(model="demo", token_ids=[1], resume=submit.Resume(attempt=0, token_ids=[4])),
    "embed.Embed": embed.Embed(model="demo", input=["a", "b"], dimensions=2, encoding_format="base64"),
    "gate.Gate": gate.Gate(
        model="demo",
        alias="demo",
        open=True,
        epoch=3,
        since=1.5,
        degraded=True,
        missing=[gate.Missing(what="demo-decode-1", why="loading")],
    ),
    "lifecycle.Registration": lifecycle.Registration(
        slot="demo-prefill-0",
        role="prefill",
        generation=2,
        state=State.READY,
        host="one",
        pid=7,
        model="demo",
        alias="demo",
        capacity=8,
        bootstrap=("127.0.0.1", 8998),
    ),
    "lifecycle.Heartbeat": lifecycle.Heartbeat(
        slot="demo-prefill-0",
        generation=2,
        state=State.READY,
        steps=9,
        in_flight=1,
        children=[lifecycle.Child(8, "S", 1.25)],
    ),
    "lifecycle.Event": lifecycle.Event(topic="actor", of="demo-prefill-0", what="ready", at=1.5, generation=2),
    "lifecycle.Stage": lifecycle.Stage(generation=2, stage="weights", seconds=0.5),
    "lifecycle.ExitNote": lifecycle.ExitNote(generation=2, code=10, reason="no such model"),
    "lifecycle.Control": lifecycle.Control(request="6f1c8d8e", attempt=1),
    "lifecycle.Answer": lifecycle.Answer(slot="demo-prefill-0", generation=2, state=State.READY),
    "telemetry.Way": telemetry.Way(
        request="6f1c8d8e",
        slot="demo-processor-0",
        generation=3,
        kind="chat",
        attempt=1,
        code=200,
        prompt_tokens=7,
        tokens=9,
        stations=[
            telemetry.Station(at=1.5, what="submitted"),
            telemetry.Station(at=1.6, what="migrated", where=["demo-decode-0#7"], why="died", attempt=1),
        ],
        untold=2,
    ),
    "prefork.Ready": prefork.Ready(pid=7, import_seconds=7.5),
    "prefork.Spawn": prefork.Spawn(slot="a", generation=1, argv=["decode"], env={"A": "1"}, log="log"),
    "prefork.Spawned": prefork.Spawned(slot="a", generation=1, pid=7, start_time=12),
    "prefork.Failed": prefork.Failed(slot="a", generation=1, reason="two threads"),
    "prefork.Exited": prefork.Exited(slot="a", generation=1, pid=7, status=-9),
    "prefork.Heard": prefork.Heard(pid=7),
}
"""What travels as JSON: what people read with the stock tools, and what is slow anyway."""


def encoded(name: str) -> bytes:
    """The bytes of an example as they travel."""
    return codec.to_msgpack(MSGPACK[name]) if name in MSGPACK else codec.to_json(JSON[name])


def decoded(name: str, data: bytes) -> Struct:
    """Read bytes back as the struct of that name."""
    if name in MSGPACK:
        return codec.from_msgpack(data, type(MSGPACK[name]))
    return codec.from_json(data, type(JSON[name]))


def shape(kind: type[Struct]) -> dict[str, Any]:
    """What of a struct must not change: its tag, whether it is an array, and each field with its type and default."""
    return {
        "tag": kind.__struct_config__.tag,
        "array": kind.__struct_config__.array_like,
        "fields": [
            [field.encode_name, _type_name(field.type), field.required] for field in msgspec.structs.fields(kind)
        ],
    }


def shapes() -> dict[str, Any]:
    """The shapes of every struct that travels, also of those inside others."""
    todo: list[Any] = [type(sample) for sample in [*MSGPACK.values(), *JSON.values()]]
    found: dict[str, Any] = {}
    while todo:
        kind = todo.pop()
        if isinstance(kind, type) and issubclass(kind, Struct):
            name = f"{kind.__module__.removeprefix('messages.')}.{kind.__name__}"
            if name not in found:
                found[name] = shape(kind)
                todo += [field.type for field in msgspec.structs.fields(kind)]
        todo += getattr(kind, "__args__", ())
    return dict(sorted(found.items()))


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
