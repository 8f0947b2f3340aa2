"""Plays one drill: load, the fault and its proof, healing, the recovery clock, and at last the judgement."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from messages import codec
from messages.bus import BusError
from messages.ids import incarnation_of
from messages.lifecycle import Event
from supervisor.commands.codes import CommandError
from supervisor.deaths import add_restart
from supervisor.drills import checker, history, outcome
from supervisor.drills.faults import FAULTS
from supervisor.drills.faults.fault import Fault, ImpossibleError, MissedError, SlotFault
from supervisor.drills.figures import Injection
from supervisor.drills.history import Head, Line
from supervisor.drills.load import Load, LoadError, LoadSpec
from supervisor.drills.observer import Waited
from supervisor.drills.outcome import Outcome
from supervisor.drills.plan import Drill, Objectives, Plan, Step
from supervisor.drills.stage import Stage, StageError
from supervisor.drills.target import TargetError, choose

RECOVERY_SECONDS: Final = 120.0
"""How long a recovery is waited for, whatever its objective: to tell late from never."""
HEAL_SECONDS: Final = 30.0
STEADY_SECONDS: Final = 300.0
BUSY_SECONDS: Final = 5.0
STREAMS: Final = 2
BETWEEN: Final = 8
"""Requests that must end well between two faults of a random drill."""

Say = Callable[[str], None]


class Rehearsal:
    """One run of one drill on one stage. `say` tells people what happens."""

    def __init__(
        self, plan: Plan, name: str, stage: Stage, load: LoadSpec, folder: Path, result: Outcome, say: Say
    ) -> None:
        self._plan = plan
        self._drill: Drill = plan.find(name)
        self._objectives: Objectives = plan.objectives_of(name, stage.model.engine)
        self._stage = stage
        self._folder = folder
        self._result = result
        self._say = say
        self._spec = load
        self._targets: list[str] = []
        self._faults: list[Fault] = []
        self._crashes: dict[str, tuple[float, ...]] = {}
        self.load = Load(stage.record, stage.model.name, plan.prompts, load, folder)
        self.minutes = 1.0

    async def run(self) -> None:
        """Play it; the result is filled in whatever happens. A cancellation heals first."""
        result, began = self._result, time.monotonic()
        try:
            await self._play()
        except ImpossibleError as error:
            result.result, result.why = "impossible", str(error)
        except (LoadError, StageError, TargetError, Waited, CommandError, BusError) as error:
            result.why = str(error)
        except asyncio.CancelledError:
            result.result, result.why = "interrupted", "interrupted; everything was healed"
            raise
        finally:
            await asyncio.shield(self._close())
            result.seconds = time.monotonic() - began

    async def _play(self) -> None:
        observer, load = self._stage.observer, self.load
        if not self._stage.whole():
            await observer.until(self._stage.whole, RECOVERY_SECONDS, "the gate open and nothing missing")
        observer.mark("load", f"{self._spec.clients} clients")
        await load.ask_once("reference", reference=True)
        if self._drill.steps:
            # Seen before minutes go into load: a fault that cannot be had here is no reason to wait.
            await self._aim(self._drill.steps)
            self._faults.clear()
        await load.start()
        self._say(f"load: {self._spec.clients} clients, {self._spec.http} over HTTP; waiting until it is steady")
        await load.steady(STEADY_SECONDS)
        for steps in self._steps():
            try:
                if not await self._strike(steps):
                    break
            except ImpossibleError as error:
                if self._drill.steps:
                    raise
                # What cannot be had here is left out of a sequence; what was played counts.
                self._say(f"left out: {error}")
        if not self._result.injections:
            raise ImpossibleError("none of its faults can be had here")
        if not self._spec.requests:
            load.stop()
        self._say("waiting for the last answers")
        await load.finish()
        observer.mark("finished")
        await load.ask_once("afterwards", reference=True)

    def _steps(self) -> Iterator[list[Step]]:
        """Tell what is injected, one time after another: once, or for so many minutes by the seed."""
        if self._drill.steps:
            yield self._drill.steps
            return
        chance, until = random.Random(self._result.seed), time.monotonic() + 60.0 * self.minutes
        while time.monotonic() < until:
            name = chance.choice(self._drill.among)
            self._say(f"random, seed {self._result.seed}: {name}")
            yield self._plan.find(name).steps

    async def _aim(self, steps: list[Step]) -> list[tuple[Fault, Injection]]:
        """Choose the targets and see that every fault can be had. Raises ImpossibleError or TargetError."""
        aimed, taken = [], frozenset[str]()
        for step in steps:
            kind = FAULTS[step.fault]
            slot = ""
            if kind.target:
                status = await self._stage.status()
                if status is None:
                    raise StageError("no supervisor answers, so nobody can say what there is to hurt")
                slot = choose(
                    status, self._stage.model.name, step.target or kind.target, taken, self._stage.observer.streams
                )
                taken |= {slot}
            fault = kind(self._stage, step, slot)
            said = await fault.aim()
            generation = fault.generation if isinstance(fault, SlotFault) else 0
            aimed.append((fault, Injection(fault=step.fault, slot=slot, said=said, generation=generation)))
        return aimed

    async def _strike(self, steps: list[Step]) -> bool:
        """Inject, prove, heal, and wait until all is well; return whether to go on."""
        observer, load = self._stage.observer, self.load
        await load.streaming(STEADY_SECONDS)
        with contextlib.suppress(Waited):
            # Where every actor has something to lose, whichever is chosen does lose it.
            await observer.until(self._all_busy, BUSY_SECONDS, "every decode actor in the middle of some streams")
        aimed = await self._aim(steps)
        if not self._drill.steps:
            # As many as the slot's own budget allows: beyond that giving it up would be right.
            await self._within_budget([injection.slot for _, injection in aimed])
        self._faults = [fault for fault, _ in aimed]
        injections = [injection for _, injection in aimed]
        self._result.injections += injections
        self._targets += [injection.slot for injection in injections if injection.slot]
        for injection in injections:
            self._say(f"hurting: {injection.said}")
        missed = False
        for fault, injection in aimed:
            injection.injected = time.monotonic()
            observer.marks.setdefault("injected", injection.injected)
            observer.lines.append(history.Mark(at=injection.injected, name="injected", text=injection.said))
            await self._publish("injected", injection)
            await fault.inject()
        for fault, injection in aimed:
            try:
                injection.proof = await fault.verify()
                self._say(f"proof: {injection.proof}")
                observer.mark("proven", injection.proof)
            except MissedError as error:
                injection.missed, missed = str(error), True
                self._say(f"MISSED: {error}")
        if not missed:
            await asyncio.sleep(max((fault.step.seconds for fault, _ in aimed if fault.held), default=0.0))
        await self._heal([one for one in aimed if missed or not one[0].lasting])
        well = not missed and await self._recover(aimed)
        await self._heal([one for one in aimed if not missed and one[0].lasting])
        self._faults.clear()
        if not well:
            return False
        await load.answered(BETWEEN, STEADY_SECONDS)
        return True

    async def _heal(self, aimed: list[tuple[Fault, Injection]]) -> None:
        for fault, injection in aimed:
            injection.healing = await fault.heal()
            injection.healed = self._stage.observer.mark("healed", injection.healing)
            await self._publish("healed", injection)

    async def _recover(self, aimed: list[tuple[Fault, Injection]]) -> bool:
        """Wait until the cluster is whole again; return whether it is."""
        for fault, injection in aimed:
            try:
                await fault.recovered(RECOVERY_SECONDS)
            except Waited as error:
                injection.trouble = str(error)
                self._say(f"NOT recovered: {error}")
                return False
            injection.recovered = self._stage.observer.mark("recovered", injection.slot or injection.fault)
            self._say(f"recovered after {injection.recovered - (injection.injected or 0.0):.2f} s")
            await self._publish("recovered", injection)
        return True

    async def _publish(self, what: str, injection: Injection) -> None:
        """Tell the event stream, so that whoever looks at it later knows what was rehearsed and what befell us."""
        stage, run = self._stage, self._result.run
        event = Event(
            topic="drill",
            of=run,
            what=what,
            at=time.time(),
            generation=injection.generation,
            reason=injection.said,
            planned=True,
            detail={"drill": self._result.drill, "fault": injection.fault, "slot": injection.slot},
        )
        with contextlib.suppress(BusError):
            await stage.observer.bus.publish(stage.subjects.event("drill", run), codec.to_json(event))

    def _all_busy(self) -> bool:
        observer, specs = self._stage.observer, self._stage.specs.values()
        decode = [spec.slot for spec in specs if spec.role == "decode" and spec.model == self._stage.model.name]
        there = [slot for slot in decode if slot in observer.registry and observer.registry[slot].state == "ready"]
        return all(observer.streams(slot) >= STREAMS for slot in there)

    async def _within_budget(self, slots: list[str]) -> None:
        """Wait until another crash of these slots is within their budgets, and count it."""
        for slot in filter(None, slots):
            policy = self._stage.specs[slot].policy
            known = self._crashes.get(slot, ())
            if len(known) >= policy.intensity:
                oldest = known[-policy.intensity]
                if (wait := oldest + policy.period + 1.0 - time.monotonic()) > 0:
                    self._say(f"{slot} has used up its restarts; waiting {wait:.0f} s")
                    await asyncio.sleep(wait)
            self._crashes[slot] = add_restart(known, time.monotonic(), policy.period)

    async def _close(self) -> None:
        """Heal what is still hurt, end the clients, and read what they saw."""
        for fault in self._faults:
            with contextlib.suppress(StageError, CommandError, BusError, TimeoutError):
                async with asyncio.timeout(HEAL_SECONDS):
                    self._say(f"healing: {await fault.heal()}")
        self._faults.clear()
        await self.load.close()

    async def judge(self, head: Head) -> list[Line]:
        """Put the history together, once the observer has left, and judge it."""
        head.targets = self._targets
        kinds = [FAULTS[injection.fault] for injection in self._result.injections]
        head.held_up = [
            incarnation_of(injection.slot, injection.generation)
            for injection in self._result.injections
            if FAULTS[injection.fault].holds_up
        ]
        head.lossy = any(kind.lossy for kind in kinds)
        head.may_close = any("-processor-" in slot for slot in self._targets)
        head.itl_p99 = None if any(kind.everywhere for kind in kinds) else self._objectives.itl_p99
        return await asyncio.to_thread(self._judge, head)

    def _judge(self, head: Head) -> list[Line]:
        lines: list[Line] = [head, *self._stage.observer.lines]
        for path in self.load.files:
            if path.exists():
                lines += history.read(path)
                path.unlink()
        path = self._folder / "history.jsonl"
        path.unlink(missing_ok=True)
        history.write(path, lines)
        result = self._result
        if result.result != "impossible":
            result.verdicts = checker.check(lines)
            outcome.judge(result, lines, self._objectives)
        (self._folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
        return lines
