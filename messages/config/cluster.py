"""A whole cluster, as a configuration file describes it, and when one of its slots is taken to hang."""

from typing import Annotated, Literal

from msgspec import Meta, field

from messages.config.cast import Restart
from messages.config.host import Dashboard, Logs, Publisher
from messages.config.model import Model
from messages.config.nats import Nats
from messages.config.written import Seconds, Written
from messages.logs import Level


class Watch(Written, kw_only=True):
    """When a slot is taken to hang; every time in seconds.

    `silence`: of a slot that is not heard for so long, processors take its streams elsewhere. Heartbeats come twice a
    second, so two may be late; longer makes longer pauses, shorter moves streams that need not move, at the price of
    their prompts computed again. `stall`: the same for an engine that has work, but neither takes a step nor spends CPU
    time; the supervisor kills it. `compute`: the same for one that computes a prompt, or whose CPU time goes on. A
    kernel compiled on its first use takes 10 to 20 seconds, and loses them if it is killed; `compute_per_token` is
    added for each token of the prompts at hand: 100 tokens/s is slow even for a CPU. `look`: of a slot that is not
    heard for so long, the supervisor looks whether its process is stopped, which is proof, and costs one file read.
    """

    silence: Seconds = 1.5
    stall: Seconds = 1.5
    compute: Seconds = 30.0
    compute_per_token: Annotated[float, Meta(ge=0)] = 0.01
    look: Seconds = 1.0


class Cluster(Written, kw_only=True):
    """A whole cluster: its name, its folder, its NATS, its models.

    `cluster` is the prefix of its subjects: clusters that share a NATS server need different ones. `state` is the
    folder of logs, pids and the embedded server's data. `restart` holds for every slot that has none of its own.
    `drills: allowed` lets faults be injected on purpose.
    """

    cluster: str = "troupe"
    state: str = ".troupe"
    nats: Nats = field(default_factory=Nats)
    restart: Restart = field(default_factory=Restart)
    drills: Literal["allowed", "refused"] = "refused"
    log_level: Level = "info"
    publisher: Publisher = field(default_factory=Publisher)
    watch: Watch = field(default_factory=Watch)
    dashboard: Dashboard = field(default_factory=Dashboard)
    logs: Logs = field(default_factory=Logs)
    models: Annotated[list[Model], Meta(min_length=1)]

    @property
    def level(self) -> Level:
        """From which level on things are logged."""
        return self.logs.level or self.log_level
