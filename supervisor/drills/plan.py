"""What drills there are, what each does and what it must meet: `configs/drills.yaml`, read and checked whole."""

import difflib
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from supervisor.drills.load import LoadSpec


class PlanError(Exception):
    """The plan cannot be used; the text says what is wrong and where."""


class Objectives(Struct, kw_only=True, forbid_unknown_fields=True):
    """What a drill must meet, set before it runs; times in seconds, None where nothing is asked.

    `failed` requests at most; `gap` is the longest silence in an answer; `detect`, `recovery` count from the
    injection; `itl_p99` is for streams that were not hit; `moved` requests at least went on elsewhere, which shows that
    the fault did hit some.
    """

    failed: int = 0
    gap: float | None = None
    detect: float | None = None
    recovery: float | None = None
    itl_p99: float | None = None
    moved: int = 0


class Step(Struct, kw_only=True, forbid_unknown_fields=True):
    """One fault: whom it is for, how many seconds it lasts where that is for us to say, and how often or how much."""

    fault: str
    target: str = ""
    seconds: float = 0.0
    times: int = 0


class Drill(Struct, kw_only=True, forbid_unknown_fields=True):
    """One drill: `steps` are injected at once; `among` are drills of which a random one takes one after another.

    `objectives` go over those of the file's top, `sglang` over both where the engine is SGLang. `load` changes the
    load. `apart` keeps it out of `troupe drill all`.
    """

    what: str
    hypothesis: str
    steps: list[Step] = []
    among: list[str] = []
    objectives: dict[str, Any] = {}
    sglang: dict[str, Any] = {}
    load: dict[str, Any] = {}
    apart: bool = False


class Plan(Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    prompts: list[str]
    drills: dict[str, Drill]
    objectives: dict[str, Any] = {}
    sglang: dict[str, Any] = {}
    load: LoadSpec = field(default_factory=LoadSpec)

    def find(self, name: str) -> Drill:
        """Return a drill by its name. Raises PlanError naming those there are."""
        if name not in self.drills:
            close = difflib.get_close_matches(name, self.drills, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise PlanError(f"there is no drill {name!r}; {hint}there are {', '.join(self.drills)}, and all")
        return self.drills[name]

    def objectives_of(self, name: str, engine: str) -> Objectives:
        """Return what a drill must meet on an engine."""
        drill = self.find(name)
        given = self.objectives | (self.sglang if engine == "sglang" else {}) | drill.objectives
        return msgspec.convert(given | (drill.sglang if engine == "sglang" else {}), Objectives)

    def load_of(self, name: str, more: dict[str, Any]) -> LoadSpec:
        """Return the load of a drill; `more` comes from the command line. Raises PlanError."""
        given = msgspec.to_builtins(self.load) | self.find(name).load | more
        try:
            return msgspec.convert(given, LoadSpec, strict=False)
        except msgspec.ValidationError as error:
            known = ", ".join(field.name for field in msgspec.structs.fields(LoadSpec))
            raise PlanError(f"load: {error}; known are {known}") from None


def read(path: Path, faults: dict[str, Any]) -> Plan:
    """Read a plan and check it against the faults there are. Raises PlanError."""
    try:
        plan = msgspec.yaml.decode(path.read_bytes(), type=Plan)
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise PlanError(f"{path}: {error}") from None
    for name, drill in plan.drills.items():
        where = f"{path}: drills.{name}"
        if bool(drill.steps) == bool(drill.among):
            raise PlanError(f"{where}: either steps or among must be given, and not both")
        for step in drill.steps:
            if step.fault not in faults:
                raise PlanError(f"{where}.steps: there is no fault {step.fault!r}; there are {', '.join(faults)}")
        for other in drill.among:
            if not plan.find(other).steps:
                raise PlanError(f"{where}.among: {other!r} is random itself")
        try:
            plan.objectives_of(name, "simulated")
            plan.objectives_of(name, "sglang")
        except msgspec.ValidationError as error:
            raise PlanError(f"{where}: objectives: {error}") from None
        plan.load_of(name, {})
    if not plan.prompts:
        raise PlanError(f"{path}: prompts: at least one is needed")
    return plan


def read_load(text: str) -> dict[str, Any]:
    """Read `clients=8,requests=100`. Raises PlanError."""
    known = {field.name for field in msgspec.structs.fields(LoadSpec)}
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, sign, value = part.partition("=")
        if not sign or name.strip() not in known:
            told = f"for example clients=8,requests=100; known are {', '.join(sorted(known))}"
            raise PlanError(f"--load: {part!r} is not understood; {told}")
        found[name.strip()] = value.strip()
    return found
