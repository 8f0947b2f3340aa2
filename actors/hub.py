"""Models by their Hugging Face id: what the local cache lacks is downloaded, with progress, by a process of its own.

Of its own, because the threads of a download must be gone before an engine forks its scheduler.
"""

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

PROGRESS_SECONDS: Final = 1.0
STALLED_SECONDS: Final = 120.0
"""A download in which no byte comes for so long is given up, to be begun again where it stopped."""
PASSED_OVER: Final = ("original/*", "consolidated*")
"""Second copies of the weights, in forms that no engine here reads."""
TELLING: Final = (
    "RepositoryNotFoundError",
    "GatedRepoError",
    "RevisionNotFoundError",
    "HFValidationError",
    "OfflineModeIsEnabled",
)
"""Errors that asking again does not mend."""


class HubError(Exception):
    """A repository cannot be had; `final` says that asking again cannot mend it."""

    def __init__(self, text: str, *, final: bool) -> None:
        super().__init__(text)
        self.final = final


def fetch(
    repository: str, wanted: Iterable[str], complete: Callable[[Path], bool], progress: Callable[[str], None]
) -> Path:
    """Return the local folder of a repository, downloading its files of these patterns unless `complete` says yes.

    `progress` is told once a second while bytes come, in words. What an interrupted download had is kept and gone on
    from. The place of the cache, the token and a mirror are the hub's own environment variables: HF_HOME, HF_TOKEN,
    HF_ENDPOINT, HF_HUB_OFFLINE. Raises HubError.
    """
    patterns = list(wanted)
    folder = _cached(repository, patterns)
    if folder is not None and complete(folder):
        return folder
    progress(f"{repository}: asking the hub")
    found = _download(repository, patterns, progress)
    if not complete(found):
        raise HubError(f"{repository} has been downloaded but lacks files that are needed: {found}", final=True)
    return found


def _cached(repository: str, wanted: list[str]) -> Path | None:
    import huggingface_hub
    import huggingface_hub.errors

    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted, local_files_only=True))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError):
        return None


def _download(repository: str, wanted: list[str], progress: Callable[[str], None]) -> Path:
    child = subprocess.Popen(
        [sys.executable, "-m", "actors.hub", repository, *wanted],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    try:
        assert child.stdout is not None
        done = -1
        with selectors.DefaultSelector() as ready:
            ready.register(child.stdout, selectors.EVENT_READ)
            moved_at = time.monotonic()
            while time.monotonic() - moved_at < STALLED_SECONDS:
                if not ready.select(PROGRESS_SECONDS):
                    continue
                line = child.stdout.readline()
                if not line:
                    raise HubError(f"{repository}: the download ended with exit code {child.wait(10)}", final=False)
                said: dict[str, Any] = json.loads(line)
                if "folder" in said:
                    return Path(said["folder"])
                if "error" in said:
                    raise HubError(f"{repository}: {said['error']}", final=said["final"])
                if said["done"] > done:
                    done, moved_at = said["done"], time.monotonic()
                    progress(f"{repository}: {done / 1e6:,.1f} of {said['total'] / 1e6:,.1f} MB")
        raise HubError(f"{repository}: no byte came from the hub for {STALLED_SECONDS:g} s", final=False)
    finally:
        child.kill()
        child.wait()


def _main(repository: str, wanted: list[str]) -> None:
    """Download, and say how far it is, where it lies at last or why not: a line of JSON each."""
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_CACHE

    blobs = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"

    def say(**what: object) -> None:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()

    def watch(total: int) -> None:
        while True:
            say(done=min(total, sum(_size(path) for path in blobs.glob("*"))), total=total)
            time.sleep(PROGRESS_SECONDS)

    try:
        about = huggingface_hub.HfApi().model_info(repository, files_metadata=True)
        files = {file.rfilename: file.size or 0 for file in about.siblings or ()}
        chosen = [name for name in files if _matches(name, wanted) and not _matches(name, PASSED_OVER)]
        threading.Thread(target=watch, args=(sum(files[name] for name in chosen),), daemon=True).start()
        folder = huggingface_hub.snapshot_download(repository, allow_patterns=wanted, ignore_patterns=list(PASSED_OVER))
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        text = " ".join(str(error).split())[:300] or type(error).__name__
        say(error=f"not to be had from Hugging Face: {text}", final=not names.isdisjoint(TELLING))
    else:
        say(folder=folder)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
