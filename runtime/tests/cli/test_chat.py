"""`oarlock chat` against a small server: piped, typed, stopped, refused."""

import io
from collections.abc import Iterator

import pytest
from support.openai_server import FakeServer, fake_server

from oarlock_runtime.cli import chat
from oarlock_runtime.cli.dispatch import main


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def test_a_piped_message_is_answered(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert main(["chat", "--url", server.url, "--max-tokens", "4", "--system", "Be brief.", "--api-key", "k"]) == 0
    assert capsys.readouterr().out == "word word word word \n"
    assert server.requests[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]
    assert server.requests[0]["path"] == "/v1/chat/completions"
    assert server.headers[0]["Authorization"] == "Bearer k"


def test_a_conversation_grows_and_can_be_cleared(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["one", "/system short", "two", "/clear", "three", "/what"])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    chat.interactive(chat.Conversation(server.url, {"model": "default"}, "", "", 10.0))
    roles = [[message["role"] for message in request["messages"]] for request in server.requests]
    assert roles == [["user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert "/clear forgets" in capsys.readouterr().out


def test_an_answer_that_is_stopped_stays_in_the_conversation(server: FakeServer) -> None:
    conversation = chat.Conversation(server.url, {"max_tokens": 50}, "", "", 10.0)
    answer = conversation.ask("hi")
    assert next(iter(answer)) == "word "
    answer.close()
    assert conversation.messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "word "}]


def test_a_refusal_is_one_line(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.refuse = 404
    monkeypatch.setattr("sys.stdin", io.StringIO("hi"))
    assert main(["chat", "--url", server.url]) == 1
    assert capsys.readouterr().err == f'oarlock: {server.url} answered 404: no "such" thing\n'


def test_a_stream_that_ends_early_is_an_error(server: FakeServer) -> None:
    server.cut = 2
    with pytest.raises(chat.OarlockError, match="ended the stream early"):
        list(chat.Conversation(server.url, {}, "", "", 10.0).ask("hi"))


def test_no_server_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server() as fake:
        url = fake.url
    monkeypatch.setattr("sys.stdin", io.StringIO("hi"))
    assert main(["chat", "--url", url]) == 1
    assert "is the server running (`oarlock serve`)?" in capsys.readouterr().err


def test_an_empty_pipe_and_a_wrong_address_are_usage_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert main(["chat"]) == 2
    assert main(["chat", "--url", "ftp://x"]) == 2
    assert "is no http address" in capsys.readouterr().err
