"""The faults that can be injected, one file each, by name."""

from typing import Final

from supervisor.drills.faults.bus_cut import BusCut
from supervisor.drills.faults.bus_kill import BusKill
from supervisor.drills.faults.bus_pause import BusPause
from supervisor.drills.faults.crash_loop import CrashLoop
from supervisor.drills.faults.drain import Drain
from supervisor.drills.faults.engine_kill import EngineKill
from supervisor.drills.faults.fault import Fault
from supervisor.drills.faults.kill import Kill
from supervisor.drills.faults.miss import Miss
from supervisor.drills.faults.restart import Restart
from supervisor.drills.faults.slow_consumer import SlowConsumer
from supervisor.drills.faults.slow_network import SlowNetwork
from supervisor.drills.faults.spin import Spin
from supervisor.drills.faults.stop import Stop
from supervisor.drills.faults.supervisor_kill import SupervisorKill

KINDS: Final[tuple[type[Fault], ...]] = (
    Kill,
    Stop,
    Spin,
    EngineKill,
    Drain,
    Restart,
    CrashLoop,
    BusKill,
    BusPause,
    BusCut,
    SlowNetwork,
    SlowConsumer,
    SupervisorKill,
    Miss,
)

FAULTS: Final[dict[str, type[Fault]]] = {kind.name: kind for kind in KINDS}
