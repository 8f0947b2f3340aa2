"""Has the processes that an engine spawns patch their imports too: Python runs this at start, off PYTHONPATH."""

from actors.engines.cpu_shims import activate

activate()
