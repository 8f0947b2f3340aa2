"""`troupe drill`: rehearse failures on a cluster of the drill's own, or on one that runs and allows it."""

import asyncio
import contextlib
import logging
import random
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Final

from messages import config
from messages.bus import VERSION, BusError
from messages.config import Cluster, ConfigError
from supervisor import spawner
from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import folder_of, read_config, record_of, say, table
from supervisor.drills import page, plan, show
from supervisor.drills.faults import FAULTS
from supervisor.drills.history import Head
from supervisor.drills.load import LoadSpec
from supervisor.drills.observer import Observer
from supervisor.drills.outcome import Outcome
from supervisor.drills.plan import Plan, PlanError
from supervisor.drills.run import Rehearsal
from supervisor.drills.stage import Own, Stage, StageError, model_of
from supervisor.spec import Spec, specs_of
from supervisor.state import ClusterRecord, Folder

READY_SLACK: Final = 60.0
WARNING_SECONDS: Final = 3.0
"""How long a running cluster's drill waits after it has said what it will hurt."""


def drill(options: Namespace) -> Code:
    """Play one drill, or all of them; the exit code says whether every one has passed."""
    try:
        chosen = plan.read(Path(options.drills), FAULTS)
        if options.list or options.NAME is None:
            say(_listing(chosen))
            return Code.OK
        names = (
            [name for name, one in chosen.drills.items() if not one.apart] if options.NAME == "all" else [options.NAME]
        )
        for name in names:
            chosen.find(name)
            chosen.load_of(name, plan.read_load(options.load))
        if options.target and (len(names) > 1 or len(chosen.find(names[0]).steps) != 1):
            raise PlanError("--target is for a drill of one fault")
        if options.target:
            chosen.find(names[0]).steps[0].target = options.target
    except PlanError as error:
        raise CommandError(Code.USAGE, str(error)) from None
    # What the bus has to say is part of what is rehearsed, and told in its own words.
    logging.getLogger("troupe.bus").setLevel(logging.CRITICAL)
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    return asyncio.run(_drill(options, chosen, names * options.times))


def _listing(chosen: Plan) -> str:
    rows = [["DRILL", "WHAT IT DOES", "IN all"]]
    rows += [[name, one.what, "no" if one.apart else "yes"] for name, one in chosen.drills.items()]
    return table(rows)


async def _drill(options: Namespace, chosen: Plan, names: list[str]) -> Code:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _interrupter(task))
    outcomes: list[Outcome] = []
    code = Code.OK
    try:
        for name in names:
            await Session(options, chosen, name).play(outcomes)
    except asyncio.CancelledError:
        code = Code.INTERRUPTED
    say()
    say(show.summary(outcomes))
    for one in outcomes:
        say(show.details(one))
    folder = Path(options.report)
    if outcomes:
        await asyncio.to_thread(page.write_index, folder, outcomes)
        say(f"\nreports: {', '.join(str(Path(one.folder) / 'report.html') for one in outcomes)}")
    if code is Code.OK and any(not one.ok for one in outcomes):
        return Code.FAILED
    if code is Code.OK and all(one.result == "impossible" for one in outcomes):
        return Code.REFUSED
    return code


def _interrupter(task: "asyncio.Task[Code]") -> Callable[[], None]:
    """Make what Ctrl-C calls: the first one ends the drill, healing what it hurt; further ones would leave it hurt."""
    told = False

    def interrupt() -> None:
        nonlocal told
        say("\nhealing and ending what was started; this takes some seconds" if told else "\ninterrupted")
        if not told:
            task.cancel()
        told = True

    return interrupt


class Session:
    """One run: the cluster, if it is to be one of its own, and everything about it that is written down."""

    def __init__(self, options: Namespace, chosen: Plan, name: str) -> None:
        self._options = options
        self._plan = chosen
        self._name = name
        self._load: LoadSpec = chosen.load_of(name, plan.read_load(options.load))
        self._seed: int = options.seed if options.seed is not None else random.randrange(1 << 31)
        run = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
        base = Path(options.report).resolve()
        self._folder = next(
            path
            for number in range(1_000)
            if not (path := base / (run if not number else f"{run}-{number + 1}")).exists()
        )
        self._progress = show.Progress(name)

    async def play(self, outcomes: list[Outcome]) -> None:
        """Play it; what came of it is added to `outcomes`, whatever happens."""
        drill_ = self._plan.find(self._name)
        result = Outcome(
            run=self._folder.name,
            drill=self._name,
            what=drill_.what,
            hypothesis=drill_.hypothesis,
            command=self._command(),
            seed=self._seed,
            started=time.time(),
            facts={},
            folder=str(self._folder),
        )
        await asyncio.to_thread(self._folder.mkdir, parents=True)
        say(f"\n{self._name}: {drill_.what}\n  expected: {drill_.hypothesis}")
        if self._options.config is not None:
            await self._on_own(result, outcomes)
        else:
            await self._on_running(result, outcomes)

    async def _on_own(self, result: Outcome, outcomes: list[Outcome]) -> None:
        """Start a cluster for this run alone; it is ended and its folder removed, whatever happens."""
        cluster, specs = self._checked(read_config(Path(self._options.config)))
        model = self._model(cluster)
        home = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="troupe-drill-"))
        own = Own(cluster, home, proxied=self._proxied())
        try:
            try:
                self._progress.say(f"starting a cluster of its own in {home}")
                await own.open()
                record = await own.ready(max(spec.load_deadline for spec in specs.values() if spec.model) + READY_SLACK)
            except StageError as error:
                result.why = str(error)
                outcomes.append(result)
                await asyncio.to_thread(page.write, self._folder, result, [])
                self._progress.say(result.why)
                return
            result.startup = own.startup
            self._progress.say(f"ready after {own.startup:.1f} s")
            await self._rehearse(own.folder, record, own.cluster, specs, model, own, result, outcomes)
        finally:
            await asyncio.shield(self._end(own, home, result))

    async def _on_running(self, result: Outcome, outcomes: list[Outcome]) -> None:
        """Use the cluster of the state folder, if its configuration allows it."""
        folder = folder_of(self._options)
        record = record_of(folder)
        cluster, specs = self._checked(read_config(Path(record.config)))
        if cluster.drills != "allowed":
            raise CommandError(
                Code.REFUSED,
                f"{record.config} refuses drills; set `drills: allowed` there, or use --config to have a drill start "
                "a cluster of its own",
            )
        model = self._model(cluster)
        self._progress.say(
            f"this hurts the running cluster {record.cluster!r} in {folder.root}: {result.what}; "
            f"Ctrl-C within {WARNING_SECONDS:g} s stops it"
        )
        await asyncio.sleep(WARNING_SECONDS)
        await self._rehearse(folder, record, cluster, specs, model, None, result, outcomes)

    async def _rehearse(
        self,
        folder: Folder,
        record: ClusterRecord,
        cluster: Cluster,
        specs: dict[str, Spec],
        model: config.Model,
        own: Own | None,
        result: Outcome,
        outcomes: list[Outcome],
    ) -> None:
        gpus = len({gpu for spec in specs.values() for gpu in spec.gpus})
        gpus = gpus or (1 if spawner.has_gpu() and shutil.which("nvidia-smi") else 0)
        observer = Observer(record, gpus)
        stage = Stage(folder, record, cluster, specs, observer, model, own)
        result.facts = _facts(cluster, model, self._load)
        head = Head(
            run=result.run,
            drill=result.drill,
            wall=observer.wall,
            monotonic=observer.monotonic,
            command=result.command,
            seed=result.seed,
            model=model.name,
            alias=model.slug,
            budgets={
                name: (spec.policy.intensity, spec.policy.period) for name, spec in specs.items() if not spec.external
            },
            gpus=gpus,
            facts=result.facts,
        )
        outcomes.append(result)
        rehearsal = Rehearsal(self._plan, self._name, stage, self._load, self._folder, result, self._progress.say)
        rehearsal.minutes = self._options.minutes
        watching = asyncio.create_task(self._progress.watch(rehearsal.load))
        try:
            async with observer:
                await rehearsal.run()
        except BusError as error:
            result.why = str(error)
        finally:
            watching.cancel()
            lines = await asyncio.shield(rehearsal.judge(head))
            await asyncio.to_thread(page.write, self._folder, result, lines)
            self._progress.say(f"{result.result}{f': {result.why}' if result.why else ''}")

    async def _end(self, own: Own, home: Path, result: Outcome) -> None:
        self._progress.say("ending its cluster")
        await own.down()
        await asyncio.to_thread(_keep_evidence, own, self._folder, whole=not result.ok)
        with contextlib.suppress(OSError):
            await asyncio.to_thread(shutil.rmtree, home)

    def _checked(self, cluster: Cluster) -> tuple[Cluster, dict[str, Spec]]:
        try:
            return cluster, specs_of(cluster, has_gpu=spawner.has_gpu())
        except ConfigError as error:
            raise CommandError(Code.CONFIG, str(error)) from None

    def _proxied(self) -> bool:
        """Whether any fault of this drill needs a proxy before NATS."""
        drill_ = self._plan.find(self._name)
        steps = [*drill_.steps, *(step for name in drill_.among for step in self._plan.find(name).steps)]
        return any(FAULTS[step.fault].proxied for step in steps)

    def _model(self, cluster: Cluster) -> config.Model:
        try:
            return model_of(cluster, self._options.model)
        except StageError as error:
            raise CommandError(Code.USAGE, str(error)) from None

    def _command(self) -> str:
        """The command that plays this again, seed and all."""
        options = self._options
        parts = ["troupe", "drill", self._name]
        for name in ("config", "state", "model", "load", "target"):
            if value := getattr(options, name):
                parts += [f"--{name}", str(value)]
        if self._plan.find(self._name).among:
            parts += ["--minutes", f"{options.minutes:g}", "--seed", str(self._seed)]
        return shlex.join(parts)


def _facts(cluster: Cluster, model: config.Model, load: LoadSpec) -> dict[str, str]:
    """What the figures depend on."""
    cast = ", ".join(f"{part.count} {role}" for role, part in model.cast.items())
    each = f"{load.requests} requests" if load.requests else "any number of requests"
    return {
        "model": model.name,
        "engine": model.engine,
        "cast": cast,
        "load": f"{load.clients} clients ({min(load.http, load.clients)} over HTTP) x {each}, {load.tokens} tokens "
        f"each, within {load.timeout:g} s",
        "host": socket.gethostname(),
        "troupe": VERSION,
        "python": sys.version.split()[0],
        "cluster": cluster.cluster,
    }


def _keep_evidence(own: Own, folder: Path, *, whole: bool) -> None:
    """Keep what the supervisor said, and where something went wrong what everybody said."""
    with contextlib.suppress(OSError):
        shutil.copyfile(own.folder.root / "supervisor.log", folder / "supervisor.log")
    if whole:
        for log in sorted((own.folder.root / "slots").glob("*/log*")):
            with contextlib.suppress(OSError):
                (folder / "logs").mkdir(exist_ok=True)
                shutil.copyfile(log, folder / "logs" / f"{log.parent.name}.{log.name}")
