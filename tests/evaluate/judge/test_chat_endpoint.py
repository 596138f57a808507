"""The client of chat endpoints against a small server: what is sent, what is tried again, what is refused."""

import pytest

from hcnr_jax.errors import InputError, RunError
from hcnr_jax.evaluate.judge.chat_endpoint import ATTEMPTS, ChatEndpoint, check_url, is_url
from tests.evaluate.judge.chat_server import chat_server, completion


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def endpoint(url, waits=None, **fields):
    return ChatEndpoint(url, "m", timeout=5.0, sleep=(waits if waits is not None else []).append, **fields)


def test_one_request_a_text_with_model_and_key():
    with chat_server(lambda number, body: completion(body["messages"][0]["content"].upper())) as server:
        found = {}
        endpoint(server.url, key="secret").ask(["a", "b", "c"], lambda index, reply: found.update({index: reply}))
    assert found == {0: "A", 1: "B", 2: "C"}
    first = server.requests[0]
    assert first.path == "/v1/chat/completions" and first.headers["Authorization"] == "Bearer secret"
    assert first.body["model"] == "m" and first.body["temperature"] == 0
    assert "secret" not in repr(endpoint(server.url, key="secret"))


def test_the_whole_address_may_be_given_and_no_key_is_sent():
    with chat_server(lambda number, body: completion("REFUSED")) as server:
        assert endpoint(f"{server.url}/chat/completions/").reply("a") == "REFUSED"
    assert server.requests[0].path == "/v1/chat/completions" and "Authorization" not in server.requests[0].headers


def test_busy_and_failing_endpoints_are_tried_again_after_longer_waits():
    statuses = {
        1: (503, {}),
        2: (429, {"Retry-After": "7"}),
        3: (500, {"Retry-After": "Fri, 27 Nov 2026 09:00:00 GMT"}),
    }

    def answer(number, body):
        status, headers = statuses.get(number, (200, {}))
        return (status, {"error": "busy"}, headers) if number in statuses else completion("ANSWERED")

    waits = []
    with chat_server(answer) as server:
        assert endpoint(server.url, waits).reply("a") == "ANSWERED"
    assert waits == [1.0, 7.0, 4.0] and len(server.requests) == 4


def test_it_gives_up_after_all_attempts():
    waits = []
    words = r"no reply after 6 attempts \(status 500: .*down.*repeat the command"
    failing = chat_server(lambda number, body: (500, {"error": "down"}, {}))
    with failing as server, pytest.raises(RunError, match=words):
        endpoint(server.url, waits).reply("a")
    assert len(server.requests) == ATTEMPTS and waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    with pytest.raises(RunError, match="no reply after 6 attempts"):
        endpoint(server.url).reply("a")  # the server is gone


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, "set OPENAI_API_KEY to a key of this endpoint"),
        (404, {}, "check the address and --judge-model"),
        (307, {"Location": "http://127.0.0.1:9/v1"}, "redirects are not followed"),
        (302, {"Location": "http://127.0.0.1:9/v1"}, "redirects are not followed"),
    ],
)
def test_refusals_are_not_tried_again(status, headers, words):
    refusing = chat_server(lambda number, body: (status, {"error": "no such thing"}, headers))
    with refusing as server, pytest.raises(InputError) as error:
        endpoint(server.url).ask(["a"], lambda index, reply: None)
    assert words in str(error.value) and f"status {status}" in str(error.value) and len(server.requests) == 1


@pytest.mark.parametrize("body", [b"<html>", {"choices": []}, {"text": "REFUSED"}, [1], {"choices": [{"message": 1}]}])
def test_other_replies_are_named(body):
    other = chat_server(lambda number, _: (200, body, {}))
    with other as server, pytest.raises(RunError, match="expected a chat completion"):
        endpoint(server.url).reply("a")


def test_a_reply_without_text_is_empty():
    with chat_server(lambda number, body: completion(None)) as server:
        assert endpoint(server.url).reply("a") == ""


def test_addresses():
    assert is_url("https://h/v1") and not is_url("models/judge")
    check_url("http://h:8000/v1")
    for url in ("http://", "https:///v1", "http://h:port/v1", "http://[::1/v1"):
        with pytest.raises(InputError, match="found no host or a bad port"):
            check_url(url)
