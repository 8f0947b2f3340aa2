"""Which engine a model gets: the one place where the configuration's word becomes a class, imported only then."""

from actors.engines.engine import Disaggregation, Engine
from actors.setup import Setup


def make_engine(setup: Setup, disaggregation: Disaggregation) -> Engine:
    """Make the engine that the model's configuration asks for; nothing is loaded yet."""
    if setup.model.engine == "simulated":
        from actors.engines.simulated import SimulatedEngine

        return SimulatedEngine(setup, disaggregation)
    from actors.engines.sglang import SglangEngine

    return SglangEngine(setup, disaggregation)
