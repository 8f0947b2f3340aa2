"""The page's own files: read once, told apart by their content so that browsers fetch what is new and nothing else."""

import hashlib
from pathlib import Path
from typing import Final, NamedTuple

from aiohttp import web

from supervisor.dashboard.refusal import RefusalError

FOLDER: Final = Path(__file__).parent / "static"
INDEX: Final = "index.html"
KINDS: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}


class _File(NamedTuple):
    body: bytes
    kind: str
    tag: str


class StaticFiles:
    """All files of the page, by their path below its folder."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def read(self) -> None:
        """Read them all; it blocks."""
        for path in FOLDER.rglob("*"):
            if (kind := KINDS.get(path.suffix)) is not None:
                body = path.read_bytes()
                tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
                self._files[path.relative_to(FOLDER).as_posix()] = _File(body, kind, tag)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer with a file; one that the browser has already is not sent again."""
        file = self._files.get(request.match_info.get("name", INDEX))
        if file is None:
            raise RefusalError(404, f"there is no {request.path[:200]} here")
        headers = {"ETag": file.tag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == file.tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.body, content_type=file.kind, charset="utf-8", headers=headers)
