"""Asking an endpoint: waits, refusals, answers that hang or lead elsewhere, where address and key come from."""

import functools
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from vlm_server import KEY, PROMPTS, Server, judge, marks, reply, serving, views

from align3d.rewards import endpoint

TALLY = endpoint.tally


@pytest.fixture
def server(tmp_path, monkeypatch):
    with serving(tmp_path, monkeypatch) as one:
        yield one


class Waits(threading.Event):
    """Notes how long it should wait, and does not."""

    def __init__(self):
        super().__init__()
        self.told = []

    def wait(self, timeout=None):
        self.told.append(timeout)
        return False


def asks(server, answers, seed="s", **options):
    """What an endpoint gives for one question if the server answers so in turn, and the waits between."""
    server.answer = lambda _: answers[min(len(server.asked), len(answers)) - 1]
    waits = Waits()
    try:
        one = endpoint.Endpoint(server.url, KEY, **({"timeout": 30.0} | options))
        return one.ask({"temperature": 0}, time.monotonic() + 100, seed, waits), waits.told
    except ValueError as error:
        return str(error), waits.told


def test_waits_grow_and_differ(server, monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST", 1.0)
    down = (503, {}, b'{"error": {"message": "loading"}}')
    found, waits = asks(server, [down, down, down, (200, {}, b'{"a": 1}')])
    assert found == {"a": 1}
    assert all(0.5 * 2**i <= wait < 1.5 * 2**i for i, wait in enumerate(waits)) and len(waits) == 3
    server.asked.clear()
    said, more = asks(server, [down], seed="t", retries=6)
    assert said == "gave up after 7 attempts: 503 Service Unavailable: loading"
    assert len(more) == 6 and more[:3] != waits and max(more) <= 45
    server.asked.clear()
    assert asks(server, [down], retries=3)[1][:3] == waits  # the same seed


def test_retry_after_is_honoured(server):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    busy = [(429, {"Retry-After": value}, b"slow down") for value in ("7", "2.5", date, "soon", "-3", "nan")]
    found, waits = asks(server, [*busy, (200, {}, b"{}")], retries=9)
    assert found == {} and waits[:2] == [7.0, 2.5] and 20 < waits[2] <= 40 and max(waits[3:]) < 2
    server.asked.clear()
    said, waits = asks(server, [(429, {"Retry-After": "3600"}, b"slow down")])
    assert said.startswith("429 Too Many Requests: slow down, to be asked again after 3.6e+03 s; no time is left")
    assert not waits and len(server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {}, f'{{"error": {{"message": "bad key {KEY}"}}}}'.encode()), r"401 Unauthorized: bad key \*\*\*$"),
        ((404, {}, b'{"error": "no model m"}'), "404 Not Found: no model m$"),
        ((400, {}, b'{"detail": [1, 2]}'), r'400 Bad Request: {"detail": \[1, 2\]}$'),
        ((429, {}, b'{"error": {"message": "pay", "code": "insufficient_quota"}}'), "429 Too Many Requests: pay$"),
        ((307, {"Location": "http://127.0.0.1:9/"}, b""), "sends elsewhere"),
        (b"<html>login</html>", "sent no JSON object but '<html>login</html>'; is it the right address"),
        (b"[" * 10**5, "sent no JSON object"),
        (b" " * (endpoint.MAX_BYTES + 1), "sent more than 4 MiB"),
        (b"\x1b[2J\n\n", r"but '\?\[2J'"),
    ],
)
def test_what_no_patience_helps_is_said_at_once(server, answer, message):
    server.answer = lambda _: answer
    with pytest.raises(ValueError, match=message) as error:
        judge()(views(1), PROMPTS[:1])
    assert "reward vlm-judge got no marks for 'a red cup': " in str(error.value) and len(server.asked) == 1
    assert KEY not in str(error.value) and "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_redirections_do_not_carry_the_key_away(server):
    other = Server()
    for status in (301, 302, 303, 307, 308):
        server.answer = lambda _, status=status: (status, {"Location": other.url + "/chat/completions"}, b"")
        with pytest.raises(ValueError, match="sends elsewhere"):
            judge()(views(1), PROMPTS[:1])
    assert not other.asked
    other.http.shutdown()


@pytest.mark.parametrize("kind", ["silent", "bytes of a head", "bytes of a body", "closes", "cut off"])
def test_hanging_endpoints_are_given_up(server, kind):
    release = threading.Event()
    cut = reply(marks())[:-20]
    answers = {
        "silent": lambda _: (release.wait(60), b"")[1],
        "bytes of a head": lambda _: b"HTTP/1.1 200 OK\r\nX: " + b"y" * 3000,
        "bytes of a body": lambda _: b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 3000,
        "closes": lambda _: 1 / 0,
        "cut off": lambda _: (200, {"Content-Length": "100000"}, cut),
    }
    server.answer = answers[kind]
    server.http.handle_error = lambda *_: None
    server.pieces = 0.02 if "bytes" in kind else None
    begun = time.monotonic()
    with pytest.raises(ValueError, match="for 'a red cup': gave up after 2 attempts: ") as error:
        judge(timeout=0.3, retries=1)(views(1), PROMPTS[:1])
    release.set()
    assert time.monotonic() - begun < 10 and len(server.asked) == 2
    assert kind in ("closes", "cut off") or "no whole answer within 0.3 s" in str(error.value)


def test_patience_bounds_everything(server):
    server.answer = lambda _: (500, {}, b"")
    begun = time.monotonic()
    with pytest.raises(ValueError, match="no time is left"):  # to wait, or on a busy machine even to ask
        judge(patience=0.3, retries=100)(views(1), PROMPTS[:1])
    assert time.monotonic() - begun < 10


ENVIRONMENT = [
    ({}, r"no endpoint is set; export ALIGN3D_VLM_URL=https://HOST/v1"),
    ({"OPENAI_API_KEY": KEY}, "no endpoint is set"),
    ({"ALIGN3D_VLM_URL": "ftp://x/v1"}, "ALIGN3D_VLM_URL must be http:// or https://"),
    ({"ALIGN3D_VLM_URL": "x/v1"}, "got 'x/v1'"),
    ({"ALIGN3D_VLM_URL": "http://x:y/v1"}, "ALIGN3D_VLM_URL is no address"),
    ({"ALIGN3D_VLM_URL": f"https://me:{KEY}@x/v1"}, "must not hold a name or password"),
    ({"ALIGN3D_VLM_URL": "https://x/v1?a=b"}, "a host and a path"),
    ({"OPENAI_BASE_URL": "https://x/v1", "OPENAI_API_KEY": f"{KEY}\nX: y"}, "OPENAI_API_KEY has blanks or characters"),
]


@pytest.mark.parametrize(("variables", "message"), ENVIRONMENT)
def test_environments_that_cannot_be(monkeypatch, variables, message):
    for name in sum(endpoint.PLACES, ()):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message) as error:
        judge().check(PROMPTS)
    assert KEY not in str(error.value)


def test_addresses_keep_their_own_keys(monkeypatch):
    monkeypatch.setenv("ALIGN3D_VLM_URL", "http://localhost:8000/v1/")
    monkeypatch.delenv("ALIGN3D_VLM_KEY", raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://x/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = endpoint.from_environment(1.0, 1)
    assert (found.url, found.key) == ("http://localhost:8000/v1", "")
    monkeypatch.setenv("ALIGN3D_VLM_URL", "")
    assert (endpoint.from_environment(1.0, 1).url, endpoint.from_environment(1.0, 1).key) == ("https://x/v1", KEY)


def test_the_bill_is_told_at_the_end(server, monkeypatch, capsys):
    registered = []
    monkeypatch.setattr(endpoint.atexit, "register", registered.append)
    monkeypatch.setattr(endpoint, "tally", functools.cache(TALLY.__wrapped__))
    one = judge(input_price=2.5, output_price=10.0)
    one(views(), PROMPTS)
    one(views(), PROMPTS)
    (say,) = registered
    say()
    said = "vlm-judge: 2 questions asked (2000 tokens sent, 100 answered, 0.0060 USD), 2 answers known before\n"
    assert capsys.readouterr().err == said
    endpoint.Tally().say()
    assert capsys.readouterr().err == ""
