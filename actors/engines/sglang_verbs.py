"""What SGLang can be told beside requests: to pause, to empty its prefix cache, to record a trace, to sleep.

Each goes through the tokenizer manager to the scheduler, as SGLang's own HTTP endpoints do (0.5.17 and 0.5.23,
srt/managers/tokenizer_control_mixin.py).
"""

import asyncio
from pathlib import Path
from typing import Any, Final

from actors.engines.engine import VerbError

TOLD_SECONDS: Final = 10.0
"""Seconds for what the scheduler does between two steps."""
MEMORY_SECONDS: Final = 60.0
"""Seconds for copying weights to the host or back: 60 GB in a second and a half where the memory is pinned."""
TRACE_SECONDS: Final = 60.0
"""Seconds for starting a trace, or for writing one."""


class SglangVerbs:
    """The verbs of one engine; `can_sleep` says whether it was started so that it gets its weights back afterwards."""

    def __init__(self, manager: Any, *, can_sleep: bool) -> None:
        self._manager = manager
        self._can_sleep = can_sleep

    async def pause(self) -> None:
        """Stop between two steps, every stream where it is."""
        from sglang.srt.managers.io_struct import PauseGenerationReqInput

        await _within(TOLD_SECONDS, self._manager.pause_generation(PauseGenerationReqInput(mode="in_place")))

    async def resume(self) -> None:
        """Go on."""
        from sglang.srt.managers.io_struct import ContinueGenerationReqInput

        await _within(TOLD_SECONDS, self._manager.continue_generation(ContinueGenerationReqInput()))

    async def flush(self) -> None:
        """Empty the prefix cache; SGLang does it only while it has nothing to do."""
        said = await _within(TOLD_SECONDS, self._manager.flush_cache())
        if not said.success:
            raise VerbError("SGLang empties its cache only while it has nothing to do; it is busy")

    async def profile(self, folder: Path, seconds: float) -> list[str]:
        """Have the scheduler record what CPU and GPU do, for torch's own viewers."""
        from sglang.srt.managers.io_struct import ProfileReq

        before = await asyncio.to_thread(_files, folder)
        try:
            asked = ProfileReq(output_dir=str(folder), activities=["CPU", "GPU"], with_stack=False, record_shapes=False)
            await _within(TRACE_SECONDS, self._manager.start_profile(asked))
            try:
                await asyncio.sleep(seconds)
            finally:
                await _within(TRACE_SECONDS, self._manager.stop_profile())
        except RuntimeError as error:
            raise VerbError(f"SGLang does not record: {error}") from error
        return sorted(await asyncio.to_thread(_files, folder) - before)

    async def sleep(self) -> None:
        """Give the GPU's memory back: the KV cache is lost, the weights wait in the host's memory.

        SGLang's scheduler dies of an assertion if it is asked while it is busy; that its cache could be emptied shows
        that it is not.
        """
        from sglang.srt.managers.io_struct import ReleaseMemoryOccupationReqInput

        if not self._can_sleep:
            raise VerbError(
                "it was not started for that; set `enable_memory_saver: true` and `enable_weights_cpu_backup: true` in "
                "its args"
            )
        await self.flush()
        await _within(MEMORY_SECONDS, self._manager.release_memory_occupation(ReleaseMemoryOccupationReqInput()))

    async def wake(self) -> None:
        """Take the memory again, weights and all."""
        from sglang.srt.managers.io_struct import ResumeMemoryOccupationReqInput

        await _within(MEMORY_SECONDS, self._manager.resume_memory_occupation(ResumeMemoryOccupationReqInput()))


def _files(folder: Path) -> set[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return {path.name for path in folder.iterdir()}


async def _within(seconds: float, doing: Any) -> Any:
    try:
        async with asyncio.timeout(seconds):
            return await doing
    except TimeoutError:
        raise VerbError(f"SGLang did not answer within {seconds:g} s") from None
