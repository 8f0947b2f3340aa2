"""What every decider hears of: the bus comes and goes, and time passes."""

from msgspec import Struct


class Bus(Struct, frozen=True):
    """The supervisor's own connection to NATS is there, or is gone."""

    up: bool


class Tick(Struct, frozen=True):
    """Time has passed."""
