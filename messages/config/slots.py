"""The slots of a cluster: every one by name, in starting order, with the model it serves."""

from typing import Final

from messages.config.cast import Part
from messages.config.cluster import Cluster
from messages.config.host import Publisher
from messages.config.model import Model
from messages.config.written import ConfigError, nearest
from messages.ids import Role, Slot

PUBLISHER_LOAD: Final = 60.0
PUBLISHER_DRAIN: Final = 10.0


def slots_of(cluster: Cluster) -> dict[str, tuple[Model, Slot]]:
    """List every slot of a cluster by name, in starting order: what computes first, what admits requests last.

    The publisher of this host comes after all of them; what stands in for its model has no name.
    """
    order: tuple[Role, ...] = ("encoder", "prefill", "decode", "processor")
    slots = {
        str(slot): (model, slot)
        for model in cluster.models
        for role in order
        if role in model.cast
        for slot in (Slot(model.slug, role, number) for number in range(model.cast[role].slots))
    }
    if cluster.publisher.enabled:
        slots[str(cluster.publisher.slot)] = (_no_model(cluster.publisher), cluster.publisher.slot)
    return slots


def find_slot(cluster: Cluster, name: str) -> tuple[Model, Slot]:
    """Find a slot by its name; raise ConfigError with the names there are if it is none of them."""
    slots = slots_of(cluster)
    if name not in slots:
        raise ConfigError(f"there is no slot {name!r}; {nearest(name, list(slots))}")
    return slots[name]


def _no_model(publisher: Publisher) -> Model:
    """Make what stands where a publisher's model would be: no name, no engine to speak of, and its own part alone."""
    part = Part(capacity=0, spawn=publisher.spawn, restart=publisher.restart, drain_deadline=PUBLISHER_DRAIN)
    return Model(name="", alias="", engine="simulated", load_deadline=PUBLISHER_LOAD, cast={"publisher": part})
