"""Plays the runtime's program in tests of the local runner: `download` and `serve`, without a model.

Variables of the pod ask for its behaviour: FAKE_DOWNLOAD_SECONDS, FAKE_FAIL (exits at once), FAKE_STREAM_SECONDS,
FAKE_STUBBORN (doesn't heed SIGTERM).
"""

import http.server
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path


def download(source: str, cache: str) -> int:
    marker = Path(cache) / "fake-model"
    if "missing" in source:
        print(f"error: {source} answered 404", file=sys.stderr)
        return 1
    total = float(os.environ.get("FAKE_DOWNLOAD_SECONDS", "0.1"))
    begun = time.monotonic()
    while time.monotonic() - begun < total:
        share = (time.monotonic() - begun) / total
        print(
            f"downloading m.gguf: {8 * share:.1f} MiB of 8.0 MiB ({share:.0%}), 2.0 MiB/s", file=sys.stderr, flush=True
        )
        time.sleep(0.1)
    marker.write_text(source)
    return 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        keys = ["POD_IPS", "POD_0_IP", "HOST_IP", "MP_NNODE", "MP_NUM", "NODE_RANK", "MODEL_DIR", "BATCH_SIZE"]
        keys += ["OARLOCK_KV_MEMORY_SHARE", "OARLOCK_THREADS"]
        if self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(10):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(float(os.environ.get("FAKE_STREAM_SECONDS", "0.1")))
            return
        body = json.dumps({key: os.environ.get(key, "") for key in keys} | {"pid": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def serve() -> int:
    if os.environ.get("FAKE_FAIL"):
        print("error: out of memory", file=sys.stderr)
        return 3
    host = os.environ["OARLOCK_HOST"]
    servers = []
    for name in ("HEALTH_HTTP_PORT", "SERVICE_HTTP_PORT"):
        server = http.server.ThreadingHTTPServer((host, int(os.environ[name])), Handler)
        server.daemon_threads = False
        threading.Thread(target=server.serve_forever).start()
        servers.append(server)
    signal.sigwait({signal.SIGUSR1 if os.environ.get("FAKE_STUBBORN") else signal.SIGTERM})
    for server in servers:
        server.shutdown()
        server.server_close()
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if sys.argv[1] == "download":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        sys.exit(download(sys.argv[2], sys.argv[4]))
    sys.exit(serve())
