"""Python imports this at start wherever the stand-ins are on PYTHONPATH: processes an engine spawns patch their imports too."""

from actors.engines.cpu_shims import activate

activate()
