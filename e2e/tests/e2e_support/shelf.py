"""A server of ready-made static graphs in PaddleNLP's layout, for pods that reach nothing outside."""

import functools
import hashlib
import http.server
import threading
from pathlib import Path

TAG = "3.0.0.b4"


class Shelf:
    """Serves `folder`, which lies as BASE/TAG/NAME/model/ with a file_list.txt; `url` is BASE."""

    def __init__(self, folder: Path, host: str) -> None:
        self.folder = folder
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer((host, 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://{host}:{self._server.server_address[1]}"

    def place(self, name: str) -> Path:
        """Where a model's files go."""
        return self.folder / TAG / name / "model"

    def list_files(self, name: str) -> None:
        """Writes the list that a download begins with."""
        place = self.place(name)
        files = [file for file in sorted(place.rglob("*")) if file.is_file()]
        lines = [f"{file.relative_to(place)}:{hashlib.md5(file.read_bytes()).hexdigest()}" for file in files]
        (place / "file_list.txt").write_text("\n".join(lines) + "\n")

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
