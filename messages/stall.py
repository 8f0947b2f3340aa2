"""When an engine makes no progress: the one rule by which processors go elsewhere and supervisors kill.

Pure: of heartbeats and of how long nothing has moved. What each does about it is its own business.
"""

from typing import Final

from messages.config import Watch
from messages.ids import Role
from messages.lifecycle import Heartbeat

IDLE_CPU: Final = 0.1
"""Share of a core below which a process spends no CPU time worth the name: NIXL's threads alone take 0.04."""
WANTS_CPU: Final = frozenset("RD")
"""States in which a process computes, or waits for a CPU or a disk: on a machine that is short of CPU an engine that
would compute may get less than that share."""
WAITING: Final = 330.0
"""Seconds of patience with a prefill actor whose CPU time goes on: it may be waiting for decode to reserve room, and
SGLang itself fails such a request after 300 s. (Seen: decode full of long streams, prefill killed for it after 30.)"""
SLACK: Final = 0.1
"""Seconds less than `Watch.stall` that count as much: heartbeats come every half second and a little more or less, and
without it the third one would decide only sometimes."""

_FOUND: Final = {"T": "is stopped", "Z": "is a zombie", "X": "is gone"}


def dead_child(beat: Heartbeat) -> str:
    """Name a process of the engine that can do no work: proof at once. Nothing by an empty text."""
    for child in beat.children:
        if child.state in _FOUND:
            return f"its engine's process {child.pid} {_FOUND[child.state]}"
    return ""


def cpu_of(beat: Heartbeat) -> float:
    """Add up the CPU time, in seconds, of an actor and its engine's processes."""
    return beat.cpu_seconds + sum(child.cpu_seconds for child in beat.children)


def works(beat: Heartbeat) -> bool:
    """Whether an engine has something to do; what it holds back is none of it, nor is all while it was told to rest."""
    return beat.in_flight > beat.queued and not beat.resting


def stalled(role: Role, beat: Heartbeat, still: float, spent: float, watch: Watch) -> str:
    """Say why an engine with work, but no step for `still` seconds in which it `spent` CPU time, is taken to hang.

    One that computes a prompt, or whose CPU time goes on, may be at a long prompt or compile a kernel on its first use:
    it has longer, by the prompt's length. Returns an empty text while it has time left.
    """
    spending = spent >= IDLE_CPU * still or any(child.state in WANTS_CPU for child in beat.children)
    patience = watch.stall - SLACK
    if beat.prefilling or spending:
        patience = watch.compute + watch.compute_per_token * beat.prefill_tokens
    if role == "prefill" and spending:
        patience = max(patience, WAITING)
    if still < patience:
        return ""
    work = f"{beat.in_flight} requests in flight"
    return f"stalled: {work}, no step for {still:.1f} s, {max(spent, 0.0):.2f} s of CPU time spent"
