"""Constant traffic from inside a pod through the Service: streams chats, one after the other in each thread.

Runs in the cluster with nothing but Python. Prints a line for each request that failed or was cut, and at the end
(SIGTERM) the counts as JSON. A stream is whole when it ends with [DONE] after a finish reason; it has failed when it
ends with an error, and it is unanswered when it has neither.
"""

import http.client
import json
import signal
import sys
import threading
import time

host, threads, model = sys.argv[1], int(sys.argv[2]), sys.argv[3]
stop = threading.Event()
counts = {"whole": 0, "failed": 0, "unanswered": 0}
lock = threading.Lock()


def chat() -> tuple[str, str]:
    """One streamed chat: which of the counts it is, and what was wrong with it."""
    connection = http.client.HTTPConnection(host, 9965, timeout=60)
    body = {
        "model": model,
        "stream": True,
        "max_tokens": 24,
        "messages": [{"role": "user", "content": "Name three colours."}],
    }
    try:
        connection.connect()
    except OSError as error:
        return "failed", f"not connected: {type(error).__name__}: {error}"
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            return "failed", f"{answer.status}: {text[:200]}"
        if not text.rstrip().endswith("data: [DONE]") or '"finish_reason":"' not in text.replace(" ", ""):
            told = '"error":' in text.replace(" ", "")
            return "failed" if told else "unanswered", f"cut after {len(text)} characters: …{text[-200:]}"
    except TimeoutError:
        return "unanswered", "silence for 60 s"
    except OSError as error:
        return "failed", f"{type(error).__name__}: {error}"
    except http.client.HTTPException as error:
        return "failed", f"cut: {type(error).__name__}: {error}"
    finally:
        connection.close()
    return "whole", ""


def keep_asking() -> None:
    while not stop.is_set():
        ended, trouble = chat()
        with lock:
            counts[ended] += 1
        if trouble:
            print(f"{time.strftime('%H:%M:%S')} {trouble}", flush=True)
            time.sleep(0.2)


signal.signal(signal.SIGTERM, lambda *_: stop.set())
workers = [threading.Thread(target=keep_asking) for _ in range(threads)]
for worker in workers:
    worker.start()
while not stop.wait(1.0):
    print("counts " + json.dumps(counts), flush=True)
for worker in workers:
    worker.join()
print("counts " + json.dumps(counts), flush=True)
