"""Serves a model's file to the pods, which reach nothing outside: slowly enough to see progress, or not at all."""

import http.server
import threading
import time
from pathlib import Path

_PIECE = 1 << 18


class WeightServer:
    """`rate` in bytes per second; while `missing`, every answer is 404."""

    def __init__(self, file: Path, host: str, rate: int) -> None:
        self.file, self.rate, self.missing = file, rate, False
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, with_body: bool) -> None:
                if owner.missing or not self.path.endswith(".gguf"):
                    self.send_error(404)
                    return
                size = owner.file.stat().st_size
                begin = 0
                asked = self.headers.get("Range", "")
                if asked.startswith("bytes="):
                    begin = int(asked[6:].split("-")[0] or 0)
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(size - begin))
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("ETag", f'"{size}"')
                if asked:
                    self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
                self.end_headers()
                if with_body:
                    self._pour(begin)

            def _pour(self, begin: int) -> None:
                with owner.file.open("rb") as file:
                    file.seek(begin)
                    while piece := file.read(_PIECE):
                        self.wfile.write(piece)
                        time.sleep(len(piece) / owner.rate)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://{host}:{self._server.server_address[1]}/model.gguf"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
