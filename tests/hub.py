"""A small stand-in for the model hub: one repository out of a folder, held back half-way where a test wants that.

It serves what `huggingface_hub` asks for: `/api/models/…`, the tree, and `/resolve/…` with HEAD, GET and ranges.
"""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `folder` as `repository` on a free port of loopback; `gate` holds `held` files back half-way."""

    def __init__(self, folder: Path, repository: str, held: str = "") -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.repository = repository
        self.held = held
        self.gate = threading.Event()
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        """End it, and whoever waits at the gate."""
        self.gate.set()
        self.server.shutdown()
        self.thread.join(5)
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(head=True)

            def do_GET(self) -> None:
                self._answer(head=False)

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self, *, head: bool) -> None:
                path = self.path.split("?")[0]
                hub.asked.append(f"{self.command} {path}")
                api, files = f"/api/models/{hub.repository}", f"/{hub.repository}/resolve/{COMMIT}/"
                if path.startswith(f"{api}/tree/"):
                    tree = [
                        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for name, data in hub.files.items()
                    ]
                    self._json(200, tree)
                elif path == api or path.startswith(f"{api}/revision/"):
                    siblings = [{"rfilename": name, "size": len(data)} for name, data in hub.files.items()]
                    self._json(200, {"id": hub.repository, "sha": COMMIT, "siblings": siblings})
                elif path.startswith(files) and (data := hub.files.get(path.removeprefix(files))) is not None:
                    self._file(path, data, head=head)
                else:
                    self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

            def _json(self, status: int, what: object, headers: dict[str, str] | None = None) -> None:
                body = json.dumps(what).encode()
                self.send_response(status)
                for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def _file(self, path: str, data: bytes, *, head: bool) -> None:
                begin = 0
                if wanted := self.headers.get("Range"):
                    begin = int(wanted.removeprefix("bytes=").split("-")[0])
                self.send_response(206 if wanted else 200)
                self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                if wanted:
                    self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - begin))
                self.end_headers()
                if head:
                    return
                half = len(data) // 2
                if hub.held and path.endswith(hub.held) and begin < half:
                    self.wfile.write(data[begin:half])
                    self.wfile.flush()
                    hub.gate.wait(60)
                    begin = half
                with contextlib.suppress(BrokenPipeError):
                    self.wfile.write(data[begin:])

        return Handler
