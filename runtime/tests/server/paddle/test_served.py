"""A whole server in PaddleNLP's place: its documented calls, names over all processes, warm-up, logs, metrics."""

import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.served import Served, served, until

PATH = "/v1/chat/completions"
# The examples of PaddleNLP's deployment guide (Apache-2.0), word for word but for the address.
REQUESTS = """
import uuid
import json
import requests
ip = "127.0.0.1"
service_http_port = "9965"    # 服务配置的
url = f"http://{ip}:{service_http_port}/v1/chat/completions"
req_id = str(uuid.uuid1())
data_single = {
    "text": "Hello, how are you?",
    "req_id": req_id,
    "max_dec_len": 64,
    "stream": True,
  }
# 逐token返回
res = requests.post(url, json=data_single, stream=True)
for line in res.iter_lines():
    print(json.loads(line))

# 多轮对话
data_multi = {
    "messages": [
      {"role": "user", "content": "Hello, who are you"},
      {"role": "system", "content": "I'm a helpful AI assistant."},
      {"role": "user", "content": "List 3 countries and their capitals."},
    ],
    "req_id": req_id,
    "max_dec_len": 64,
    "stream": True,
  }
# 逐token返回
res = requests.post(url, json=data_multi, stream=True)
for line in res.iter_lines():
    print(json.loads(line))
"""
OPENAI = """
import openai

ip = "127.0.0.1"
service_http_port = "9965"    # 服务配置的

client = openai.Client(base_url=f"http://{ip}:{service_http_port}/v1/chat/completions", api_key="EMPTY_API_KEY")

# 非流式返回
response = client.completions.create(
    model="default",
    prompt="Hello, how are you?",
  max_tokens=50,
  stream=False,
)

print(response)
print("\\n")

# 流式返回
response = client.completions.create(
    model="default",
    prompt="Hello, how are you?",
  max_tokens=100,
  stream=True,
)

for chunk in response:
  if chunk.choices[0] is not None:
    print(chunk.choices[0].text, end='')
print("\\n")

# Chat completion
# 非流式返回
response = client.chat.completions.create(
    model="default",
    messages=[
        {"role": "user", "content": "Hello, who are you"},
        {"role": "system", "content": "I'm a helpful AI assistant."},
        {"role": "user", "content": "List 3 countries and their capitals."},
    ],
    temperature=0,
    max_tokens=64,
    stream=False,
)

print(response)
print("\\n")

# 流式返回
response = client.chat.completions.create(
    model="default",
    messages=[
        {"role": "user", "content": "Hello, who are you"},
        {"role": "system", "content": "I'm a helpful AI assistant."},
        {"role": "user", "content": "List 3 countries and their capitals."},
    ],
    temperature=0,
    max_tokens=64,
    stream=True,
)

for chunk in response:
  if chunk.choices[0].delta is not None:
    print(chunk.choices[0].delta.content, end='')
print("\\n")
client.close()
"""


@pytest.fixture(scope="module")
def running(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two server processes, warmed up, with a pool counted as PaddleNLP does and keys of an export."""
    cache = tmp_path_factory.mktemp("cache")
    model = shutil.copytree(tiny_model, cache / "exported")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "infer_model_max_seq_len": 448}))
    flags = ["--server-processes", "2", "--warmup", "--max-sequences", "4", "--max-output-tokens", "128"]
    with served(model, cache, *flags, "--block-bs", "3.5", "--max-prefill-batch", "2") as server:
        yield server


def run(server: Served, snippet: str) -> str:
    """What the snippet prints, against `server`."""
    out = io.StringIO()
    with redirect_stdout(out):
        exec(snippet.replace("9965", str(server.api_port)), {})
    return out.getvalue()


@pytest.mark.conformance(10)
def test_the_documented_requests(running: Served) -> None:
    frames: list[dict[str, Any]] = [eval(line) for line in run(running, REQUESTS).splitlines()]
    ends = [place for place, frame in enumerate(frames) if frame["is_end"]]
    assert len(ends) == 2 and ends[-1] == len(frames) - 1
    for part in (frames[: ends[0] + 1], frames[ends[0] + 1 :]):
        assert "".join(frame["token"] for frame in part) == part[-1]["tokens_all"]
        assert all(frame["error_code"] == 0 and frame["error_msg"] == "" for frame in part)


@pytest.mark.conformance(15)
def test_the_documented_openai_client(running: Served) -> None:
    printed = run(running, OPENAI)
    assert "Completion(" in printed and "ChatCompletion(" in printed


@pytest.mark.conformance(9)
def test_curl(running: Served) -> None:
    body = '{"text": "hello", "max_dec_len": 8}'
    command = ["curl", "-s", "-X", "POST", running.url + PATH, "-H", "Content-Type: application/json", "-d", body]
    answer = json.loads(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout)
    assert answer["error_code"] == 0 and answer["result"] == answer["tokens_all"]


@pytest.mark.conformance(13)
def test_a_req_id_is_live_once_over_all_processes(running: Served) -> None:
    # Connections are spread over the processes by the kernel; twelve of them meet both.
    body = {"text": "hello", "req_id": "same", "min_dec_len": 120, "max_dec_len": 128}
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(httpx.post(running.url + PATH, json=body, timeout=60).json()))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    codes = [answer["error_code"] for answer in answers]
    assert codes.count(0) >= 1 and set(codes) <= {0, 200}
    assert all("req_id same already exists" in answer["error_msg"] for answer in answers if answer["error_code"])


@pytest.mark.conformance(24)
def test_the_same_seed_gives_the_same_answer(running: Served) -> None:
    def result(**fields: Any) -> str:
        body = {"text": "hello", "max_dec_len": 20, "topp": 1.0, "temperature": 5.0, **fields}
        answer: str = httpx.post(running.url + PATH, json=body, timeout=60).json()["result"]
        return answer

    assert result(infer_seed=9) == result(infer_seed=9) != result(infer_seed=10)


@pytest.mark.conformance(14)
def test_a_request_that_ran_out_of_time_frees_its_blocks(running: Served) -> None:
    body = {"text": "hello", "min_dec_len": 128, "max_dec_len": 128, "timeout": 0.001}
    for _ in range(3):
        answer = httpx.post(running.url + PATH, json=body, timeout=60).json()
        assert answer["error_code"] in (0, 501)
    until(lambda: running.metric("oarlock_kv_blocks_used") == 0)


@pytest.mark.conformance(27)
def test_the_five_series_and_fastdeploys_names(running: Served) -> None:
    httpx.post(running.url + PATH, json={"text": "hello", "max_dec_len": 2}, timeout=60)
    until(lambda: running.metric('inference_server_metrics{batch_size="batch_size"}') == 0)
    assert running.metric('inference_server_metrics{max_batch_size="max_batch_size"}') == 4
    most = running.metric('inference_server_metrics{max_block_num="max_block_num"}')
    total = int(3.5 * 7)
    assert most == int(total * 0.75) and running.metric("oarlock_kv_blocks") == total
    until(lambda: running.metric('inference_server_metrics{block_num="block_num"}') == most)
    assert running.metric('inference_server_metrics{available_resource="available_resource"}') == 1
    page = running.page()
    for name in (
        "fastdeploy:num_requests_running",
        "fastdeploy:num_requests_waiting",
        "fastdeploy:prompt_tokens_total",
        "fastdeploy:generation_tokens_total",
        "fastdeploy:time_to_first_token_seconds_bucket",
        "fastdeploy:time_per_output_token_seconds_bucket",
        "fastdeploy:e2e_request_latency_seconds_bucket",
        "fastdeploy:request_queue_time_seconds_bucket",
        "fastdeploy:max_batch_size",
        "fastdeploy:free_gpu_block_num",
    ):
        assert re.search(rf"^{name}[{{ ]", page, re.MULTILINE), name
    assert 'oarlock_requests_total{endpoint="private_http",outcome="200"}' in page


@pytest.mark.conformance(6)
def test_the_keys_of_the_export_are_told(running: Served) -> None:
    assert re.search(r"max_context +448 tokens +\(config\.json\)", running.output)
    error = httpx.post(running.url + PATH, json={"input_ids": [5] * 448}, timeout=60).json()
    assert error["error_msg"] == "Input text is too long, input_ids_len (448) + min_dec_len (1) >= max_seq_len "


@pytest.mark.conformance(36)
def test_it_warmed_up_before_it_was_ready(running: Served) -> None:
    lines = running.output.splitlines()
    warmed = next(place for place, line in enumerate(lines) if "warmed up in" in line)
    ready = next(place for place, line in enumerate(lines) if "Oarlock is ready" in line)
    assert warmed < ready
    assert running.metric("oarlock_preemptions_total") == 0  # what it computed is in no counter
