"""The supervisor's end of a prefork parent, against one that forks for real and imports nothing."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from messages.prefork import Spawn
from supervisor import spawner
from supervisor.forks import ForkError, ForkParent, socket_path

PARENT = (sys.executable, str(Path(__file__).with_name("parent.py")))


@contextlib.asynccontextmanager
async def parent_in(folder: Path, device: str = "cpu") -> AsyncIterator[ForkParent]:
    """A parent that is kept running, and ended with all that it has forked."""
    parent = ForkParent(folder, device, PARENT)
    async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
        tasks.create_task(parent.keep())
        try:
            yield parent
        finally:
            await parent.stop()


def order(tmp_path: Path, slot: str = "a", *argv: str) -> Spawn:
    return Spawn(slot=slot, generation=1, argv=list(argv or ("sleep",)), env={"X": "1"}, log=str(tmp_path / "log"))


async def test_a_forked_actor_has_its_own_session_its_log_and_its_exit_code(tmp_path: Path) -> None:
    async with parent_in(tmp_path / "p") as parent:
        spawned = await parent.fork(order(tmp_path, "a", "exit", "7"))
        process = await spawner.adopt(spawned.pid, spawned.start_time)
        if process is not None:
            assert await process.wait() is None
        assert await parent.status_of(spawned.pid, 5) == 7
    assert (tmp_path / "log").read_text() == "a {'X': '1'}\n"


async def test_nobody_tells_how_an_unknown_process_ended(tmp_path: Path) -> None:
    async with parent_in(tmp_path / "p") as parent:
        assert await parent.status_of(1, 0.01) is None


async def test_what_it_forked_outlives_the_parent(tmp_path: Path) -> None:
    async with parent_in(tmp_path / "p") as parent:
        spawned = await parent.fork(order(tmp_path))
    process = await spawner.adopt(spawned.pid, spawned.start_time)
    assert process is not None
    assert os.getsid(spawned.pid) == spawned.pid
    process.kill()
    async with asyncio.timeout(5):
        await process.wait()


async def test_a_refusal_says_why(tmp_path: Path) -> None:
    async with parent_in(tmp_path / "p") as parent:
        with pytest.raises(ForkError, match="CUDA is initialised"):
            await parent.fork(order(tmp_path, "refused"))


async def test_a_parent_that_dies_over_a_fork_is_told_of_and_started_again(tmp_path: Path) -> None:
    async with parent_in(tmp_path / "p") as parent:
        with pytest.raises(ForkError, match="the prefork parent is gone"):
            await parent.fork(order(tmp_path, "fatal"))
        spawned = await parent.fork(order(tmp_path, "a", "exit", "0"))
        assert spawned.slot == "a"


async def test_a_parent_that_cannot_import_is_told_of_at_once_with_its_last_words(tmp_path: Path) -> None:
    async with parent_in(tmp_path / "p", "broken") as parent:
        async with asyncio.timeout(5):
            with pytest.raises(ForkError, match="No module named 'sglang'"):
                await parent.fork(order(tmp_path))
            with pytest.raises(ForkError, match="No module named 'sglang'"):
                await parent.fork(order(tmp_path))


async def test_who_waits_for_a_parent_is_told_when_everything_ends(tmp_path: Path) -> None:
    async with parent_in(tmp_path / "p") as parent:
        waiting = asyncio.ensure_future(parent.fork(order(tmp_path)))
        await asyncio.sleep(0)
        parent.refuse("the cluster is being ended")
        with pytest.raises(ForkError, match="the cluster is being ended"):
            await waiting


async def test_a_later_supervisor_adopts_the_parent(tmp_path: Path) -> None:
    """The first one goes without ending it, as when it is killed."""
    first = ForkParent(tmp_path / "p", "cpu", PARENT)
    keeping = asyncio.create_task(first.keep())
    await first.fork(order(tmp_path, "a", "exit", "0"))
    started = first.pid
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    async with parent_in(tmp_path / "p") as parent:
        await parent.fork(order(tmp_path, "b", "exit", "0"))
        assert parent.pid == started
    await first.stop()


def test_a_deep_state_folder_has_its_socket_elsewhere(tmp_path: Path) -> None:
    assert socket_path(Path("/s/prefork-cpu")) == Path("/s/prefork-cpu/socket")
    deep = tmp_path / ("x" * 100) / "prefork-cpu"
    assert len(str(socket_path(deep))) < 100
    assert socket_path(deep) == socket_path(deep) != socket_path(deep / "other")
