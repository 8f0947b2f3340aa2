"""The faults that can be injected, one file each, by name."""

from typing import Final

from supervisor.drills.faults.bus_kill import BusKill
from supervisor.drills.faults.bus_pause import BusPause
from supervisor.drills.faults.drain import Drain
from supervisor.drills.faults.engine_kill import EngineKill
from supervisor.drills.faults.fault import Fault
from supervisor.drills.faults.kill import Kill
from supervisor.drills.faults.miss import Miss
from supervisor.drills.faults.restart import Restart
from supervisor.drills.faults.stop import Stop
from supervisor.drills.faults.supervisor_kill import SupervisorKill

FAULTS: Final[dict[str, type[Fault]]] = {
    fault.name: fault for fault in (Kill, Stop, EngineKill, Drain, Restart, BusKill, BusPause, SupervisorKill, Miss)
}
