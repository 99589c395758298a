"""PaddleNLP's way to call its server over gRPC: a JSON list of one dict in `IN`, by Triton's own client."""

import json
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.grpc as triton

PATIENCE = 60.0  # seconds; nothing here should come near it


def tensor(payload: Any) -> triton.InferInput:
    """`IN` with a payload: text and bytes as they are, anything else as JSON."""
    element = payload if isinstance(payload, str | bytes) else json.dumps(payload)
    found = triton.InferInput("IN", [1], "BYTES")
    found.set_data_from_numpy(np.array([element], dtype=np.object_))
    return found


class Stream:
    """One open stream; `next` gives what comes, in the order in which it comes."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self._client = client
        self._answers: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def send(self, fields: Any, request_id: str = "", model: str = "model") -> None:
        """One request: `fields` in a list of one, or a payload as it is when they are no dict."""
        payload = [fields] if isinstance(fields, dict) else fields
        self._client.async_stream_infer(model, [tensor(payload)], request_id=request_id)

    def put(self, result: Any, error: Any) -> None:
        self._answers.put((result, error))

    def next(self) -> tuple[Any, bool, str]:
        """(document of `OUT`, whether it is the request's last, its id). Raises what the server refused with."""
        result, error = self._answers.get(timeout=PATIENCE)
        if error is not None:
            raise error
        answer = result.get_response()
        document = json.loads(result.as_numpy("OUT")[0])
        return document, answer.parameters["triton_final_response"].bool_param, answer.id

    def frames(self) -> list[dict[str, Any]]:
        """The frames up to the last one of a request that has the stream to itself."""
        found = []
        final = False
        while not final:
            document, final, _ = self.next()
            found.append(document[0] if isinstance(document, list) else document)
        return found


@contextmanager
def client_of(address: str) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(address)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def stream_of(client: triton.InferenceServerClient, **options: Any) -> Iterator[Stream]:
    stream = Stream(client)
    client.start_stream(stream.put, **options)
    try:
        yield stream
    finally:
        client.stop_stream(cancel_requests=True)
