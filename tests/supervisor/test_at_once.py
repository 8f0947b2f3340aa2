"""What is asked for at once: a slot ended without a drain, started again or taken out, whatever its back-off."""

import pytest

from messages.lifecycle import State
from supervisor.acts import Ask, Exited, Kill, Seen, Start, Started, Terminate
from supervisor.lives import Phase
from tests.supervisor.histories import D0, F0, Played, spec
from tests.supervisor.test_restart import ready


def test_an_engine_is_killed_and_started_again_without_counting_a_crash() -> None:
    played = ready()
    assert played.at(30, Ask(D0, "now")) == [Kill(D0, 1)]
    assert Start(D0) in played.at(30.1, Exited(D0, 1, None, "killed by SIGKILL"))
    life = played.lives.slots[D0]
    assert (life.reason, life.planned, life.crashes, life.restarts) == ("restart asked for", True, (), 1)
    played.at(30.2, Started(D0, 2))
    played.at(31, Seen(D0, 2, State.READY))
    assert played.lives.slots[D0].phase is Phase.READY


def test_a_processor_tells_its_clients_before_it_ends() -> None:
    played = ready(spec(F0))
    assert played.at(30, Ask(F0, "now")) == [Terminate(F0, 1, True)]


def test_a_back_off_is_skipped() -> None:
    played = ready(backoff=8.0)
    played.at(1.5, Exited(D0, 1, None, "killed by SIGKILL"))
    assert played.lives.slots[D0].phase is Phase.WAITING
    assert played.at(1.6, Ask(D0, "now")) == [Start(D0)]


@pytest.mark.parametrize("running", [True, False])
def test_what_is_taken_out_stays_stopped(running: bool) -> None:
    played = ready(backoff=8.0)
    if running:
        assert played.at(30, Ask(D0, "out")) == [Kill(D0, 1)]
        played.at(30.1, Exited(D0, 1, None, "killed by SIGKILL"))
    else:
        played.at(1.5, Exited(D0, 1, None, "killed by SIGKILL"))
        assert played.at(1.6, Ask(D0, "out")) == []
    life = played.lives.slots[D0]
    assert (life.phase, life.reason, life.planned) == (Phase.STOPPED, "taken out", True)
    assert played.at(1_000, Ask(D0, "restart")) == [Start(D0)]


def test_a_drain_that_takes_too_long_is_cut_short() -> None:
    played = ready()
    assert played.at(30, Ask(D0, "drain")) == [Terminate(D0, 1)]
    assert played.at(31, Ask(D0, "now")) == [Kill(D0, 1)]
    assert Start(D0) in played.at(31.1, Exited(D0, 1, None, "killed by SIGKILL"))


def test_nothing_of_it_while_a_start_is_under_way() -> None:
    played = Played(spec())
    assert played.at(0.1, Ask(D0, "now")) == []
