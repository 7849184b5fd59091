"""The judge behind an endpoint, against a local server: what is asked, what is kept, and all that can go wrong."""

import base64
import functools
import io
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from command_checks import refused
from PIL import Image

from align3d.cli import main
from align3d.config import described
from align3d.rewards import endpoint, vlm_judge
from align3d.rewards.vlm_judge import ASPECTS, MARKS, VLMJudge, marks_of
from align3d.scenes.cameras import orbit
from align3d.types import Views

B, V, H, W = 2, 3, 20, 28
PROMPTS = ["a red cup", 'a "blue" cup']
KEY = "sk-secret-0123456789"
TALLY = endpoint.tally


def views(rows: int = B, seed: int = 0) -> Views:
    rgb = torch.rand(rows, V, 3, H, W, generator=torch.Generator().manual_seed(seed))
    angles = torch.arange(V).float().expand(rows, V)
    return Views(orbit(angles, angles, height=H, width=W), rgb=rgb)


def reply(content: str, tokens: tuple[int, int] = (1000, 50)) -> bytes:
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}], "usage": usage}).encode()


def marks(overall: float = 7, **others: float) -> str:
    return json.dumps({"remarks": "fine", **dict.fromkeys(ASPECTS, 5), "overall": overall} | others)


def sent_pictures(asked: dict) -> list[np.ndarray]:
    """The pictures of a question."""
    urls = [part["image_url"]["url"] for part in asked["messages"][1]["content"] if part["type"] == "image_url"]
    kind, _, data = zip(*(url.partition(",") for url in urls), strict=True)
    assert set(kind) == {"data:image/png;base64"}
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in data]


def text_of(asked: dict) -> str:
    return asked["messages"][1]["content"][0]["text"]


def honest(asked: dict) -> bytes:
    """Marks that depend on pictures and prompt."""
    return reply(marks(overall=round(sent_pictures(asked)[0].mean() / 64 + len(text_of(asked)) % 7, 3)))


class Server:
    """An endpoint whose answers a test sets: from a question to bytes, or to (status, headers, bytes)."""

    def __init__(self):
        self.asked, self.headers, self.at_once, self.most = [], [], 0, 0
        self.answer, self.models, self.pieces = honest, (200, {}, b"{}"), None
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send(*server.models)

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.asked.append(asked | {"path": self.path})
                    server.headers.append(dict(self.headers))
                    server.at_once += 1
                    server.most = max(server.most, server.at_once)
                try:
                    found = server.answer(asked)
                    self.send(*(found if isinstance(found, tuple) else (200, {}, found)))
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the other side has had enough
                finally:
                    with server.lock:
                        server.at_once -= 1

            def send(self, status, headers, data):
                if server.pieces:  # a byte now and then
                    for i in range(len(data)):
                        self.wfile.write(data[i : i + 1])
                        time.sleep(server.pieces)
                    return
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(data))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        return Handler


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An endpoint that the environment names, a cache of one's own, and no long waits."""
    one = Server()
    monkeypatch.setenv("ALIGN3D_VLM_URL", one.url)
    monkeypatch.setenv("ALIGN3D_VLM_KEY", KEY)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(endpoint, "FIRST", 0.01)
    monkeypatch.setattr(endpoint, "tally", functools.cache(endpoint.Tally))  # one that says nothing at the end
    yield one
    one.http.shutdown()
    one.http.server_close()


def judge(**options) -> VLMJudge:
    return VLMJudge(model="m", **({"timeout": 30.0, "patience": 60.0} | options))


def test_one_question_for_all_views_of_an_object(server):
    seen = views()
    found = judge()(seen, PROMPTS)
    assert found.shape == (B, 1) and found.dtype == torch.float32 and not found.requires_grad
    assert len(server.asked) == B and len({x.item() for x in found}) == B
    for i, prompt in enumerate(PROMPTS):
        (asked,) = [one for one in server.asked if json.dumps(prompt) in text_of(one)]
        assert asked["path"] == "/v1/chat/completions" and asked["model"] == "m" and asked["temperature"] == 0
        schema = asked["response_format"]["json_schema"]
        assert schema["strict"] and set(schema["schema"]["required"]) == {"remarks", *MARKS} and len(ASPECTS) == 5
        assert all(name in asked["messages"][0]["content"] for name in MARKS)
        pictures = np.stack(sent_pictures(asked))
        assert np.abs(pictures / 255 - seen.rgb[i].permute(0, 2, 3, 1).numpy()).max() <= 0.5001 / 255
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)


def test_a_row_depends_on_its_object_and_prompt_alone(server, tmp_path):
    seen = views()
    whole = judge(cache=tmp_path / "a")(seen, PROMPTS)
    turned = Views(seen.cameras, rgb=seen.rgb.flip(0))
    assert torch.equal(judge(cache=tmp_path / "b")(turned, PROMPTS[::-1]), whole.flip(0))
    for i in range(B):
        alone = Views(orbit(*[torch.zeros(1, V)] * 2, height=H, width=W), rgb=seen.rgb[i : i + 1])
        assert torch.equal(judge(cache=tmp_path / "c")(alone, PROMPTS[i : i + 1])[0], whole[i])


def test_any_mark_can_be_the_reward(server):
    server.answer = lambda _: reply(marks(overall=9, geometry=2, texture=8.5))
    assert judge()(views(), PROMPTS).tolist() == [[9.0]] * B
    assert judge(mark="geometry")(views(), PROMPTS).tolist() == [[2.0]] * B
    assert judge(mark="mean")(views(), PROMPTS)[0, 0].item() == pytest.approx((2 + 8.5 + 3 * 5) / 5)
    assert len(server.asked) == B  # one answer has all marks


def test_large_views_are_shrunk(server):
    judge(size=16)(views(), PROMPTS)
    assert {x.shape for x in sent_pictures(server.asked[0])} == {(11, 16, 3)}
    with pytest.raises(ValueError, match="reward vlm-judge needs colours from 0 to 1, got -"):
        judge()(Views(views().cameras, rgb=views().rgb - 0.5), PROMPTS)
    with pytest.raises(ValueError, match="reward vlm-judge needs views with rgb"):
        judge()(Views(views().cameras), PROMPTS)


def test_no_answer_is_asked_for_twice(server, tmp_path):
    first = judge()(views(), PROMPTS)
    assert torch.equal(judge(timeout=7.0, mark="overall")(views(), PROMPTS), first) and len(server.asked) == B
    judge()(views(), ["another", PROMPTS[1]])
    assert len(server.asked) == B + 1
    judge()(views(seed=1), PROMPTS)
    assert len(server.asked) == 2 * B + 1
    VLMJudge(model="n")(views(), PROMPTS)
    assert len(server.asked) == 3 * B + 1
    twins = Views(views().cameras, rgb=views().rgb[:1].expand(B, -1, -1, -1, -1) * 0.5)
    assert judge()(twins, ["twins"] * B).unique().numel() == 1 and len(server.asked) == 3 * B + 2
    files = list((tmp_path / "cache/align3d/vlm-judge").rglob("*.json"))
    assert len(files) == 3 * B + 2 and not any(KEY in path.read_text() for path in files)
    kept = json.loads(files[0].read_text())
    assert kept["marks"].keys() == set(MARKS) and kept["tokens"] == [1000, 50] and kept["remarks"] == "fine"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"marks": {"overall": 11}}', b"[" * 60000, b"\xff\xfe", b'{"marks"'])
def test_damaged_answers_are_asked_for_again(server, tmp_path, content):
    first = judge(cache=tmp_path / "kept")(views(), PROMPTS)
    for path in (tmp_path / "kept").rglob("*.json"):
        path.write_bytes(content)
    assert torch.equal(judge(cache=tmp_path / "kept")(views(), PROMPTS), first) and len(server.asked) == 2 * B


def test_many_at_a_time_but_no_more(server):
    def slow(asked):
        end = time.monotonic() + 5
        while server.most < 3 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.02)
        return honest(asked)

    server.answer = slow
    judge(concurrency=3)(views(7), [f"thing {i}" for i in range(7)])
    assert server.most == 3 and len(server.asked) == 7


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
    with pytest.raises(ValueError, match="no time is left to wait"):
        judge(patience=0.3, retries=100)(views(1), PROMPTS[:1])
    assert time.monotonic() - begun < 10


def test_rubbish_is_asked_about_once_more(server):
    server.answer = lambda asked: honest(asked) if len(asked["messages"]) > 2 else reply("Nice cup! 7/10")
    found = judge()(views(1), PROMPTS[:1])
    first, second = server.asked
    assert second["messages"][:2] == first["messages"] and found[0, 0] > 0
    assert second["messages"][2] == {"role": "assistant", "content": "Nice cup! 7/10"}
    assert "it is no JSON object" in second["messages"][3]["content"]


def test_rubbish_twice_is_an_error_and_loses_nothing(server):
    noise = f"{KEY} \x1b\n" + "blah " * 100
    server.answer = lambda asked: reply(noise) if "cup 2" in text_of(asked) else honest(asked)
    prompts = [f"cup {i}" for i in range(4)]
    with pytest.raises(ValueError, match="no marks for 'cup 2': it is no JSON object, asked twice; m said") as error:
        judge(concurrency=1)(views(4), prompts)
    assert str(error.value).count("blah") == 39 and KEY not in str(error.value) and "\n" not in str(error.value)
    assert len(server.asked) == 4  # cup 3 is not asked about
    server.answer = honest
    assert judge()(views(4), prompts).shape == (4, 1) and len(server.asked) == 6


def test_servers_without_schemas(server):
    server.answer = lambda _: reply(f"Here you are:\n```json\n{marks(3)}\n```\nAnything else?")
    assert judge()(views(1), ["fenced"]).item() == 3

    def strict(asked):
        for name in ("response_format", "max_tokens"):
            if name in asked:
                return 400, {}, json.dumps({"error": {"message": f"Unsupported parameter: '{name}'"}}).encode()
        return reply(marks(4))

    server.answer = strict
    server.asked.clear()
    assert judge()(views(1), ["refused"]).item() == 4 and len(server.asked) == 3
    assert judge()(views(1), ["remembered"]).item() == 4 and len(server.asked) == 4
    server.answer = lambda _: json.dumps({"choices": [{"message": {"content": [{"text": marks(6)}]}}]}).encode()
    assert judge()(views(1), ["parts"]).item() == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("[1, 2]", "it is no JSON object"),
        ("{" * 10**5, "it is no JSON object"),
        (marks(11), "overall must be a number from 0 to 10, and is '11'"),
        (marks(-1), "overall must be"),
        (marks(texture=None), "texture must be a number from 0 to 10, and is 'None'"),
        (marks(geometry="7"), "geometry must be"),
        (marks(geometry=True), "geometry must be"),
        (marks(float("nan")), "and is 'nan'"),
        ('{"overall": 5}', "alignment must be a number from 0 to 10, and is missing"),
        ('{"alignment": ' + "9" * 5000 + "}", "it is no JSON object"),
    ],
)
def test_marks_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        marks_of(text)


def test_replies_that_are_none(server):
    for body in ({}, {"choices": []}, {"choices": [{"message": None}]}, {"choices": 3, "usage": [1]}):
        server.answer = lambda _, body=body: json.dumps(body).encode()
        with pytest.raises(ValueError, match="it is empty, asked twice; m said ''"):
            judge()(views(1), PROMPTS[:1])


def test_the_key_is_nowhere(server, tmp_path, caplog):
    server.answer = lambda _: reply(marks(5, remarks=f"your key is {KEY}"))
    one = judge(cache=tmp_path / "kept")
    one(views(), PROMPTS)
    texts = [path.read_text() for path in (tmp_path / "kept").rglob("*.json")]
    texts += [repr(one), str(described(one, "vlm-judge")), repr(endpoint.from_environment(60.0, 5)), caplog.text]
    assert len(texts) == B + 4 and not any(KEY in text for text in texts) and "***" in texts[0]


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


def test_check_before_any_work(server, tmp_path, monkeypatch):
    judge().check(PROMPTS)
    assert not server.asked
    with pytest.raises(ValueError, match=r"needs the name of a model, as the endpoint has it: --reward\.model NAME"):
        VLMJudge().check(PROMPTS)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot keep answers in .*file: .*; choose another folder"):
        judge(cache=tmp_path / "file").check(PROMPTS)
    vlm_judge._reach.cache_clear()
    server.models = (404, {}, b"")  # not every endpoint has a list
    judge().check(PROMPTS)
    vlm_judge._reach.cache_clear()
    server.models = (401, {}, f"what is {KEY}?".encode())
    with pytest.raises(ValueError, match=r"refuses the key: 401 Unauthorized: what is \*\*\*\?; correct ALIGN3D_VLM_"):
        judge().check(PROMPTS)
    monkeypatch.setenv("ALIGN3D_VLM_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match=r"cannot reach http://.*:9/v1: Connection refused; start the server"):
        judge().check(PROMPTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "size must be 16 to 4096, got 8"),
        ({"concurrency": 0}, "concurrency must be 1 to 64, got 0"),
        ({"retries": -1}, "retries must be 0 to 100, got -1"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"patience": float("nan")}, "patience must be above 0"),
        ({"input_price": -1.0}, "input_price must be 0 or more"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        VLMJudge(**options)


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


def test_on_the_command_line(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save("a.png")
    args = ["score", "a.png", "--prompt", "a red cup", "--json", "--rewards"]
    assert main([*args, "vlm-judge(model=m)", "shape=vlm-judge(model=m,mark=geometry)"]) == 0
    assert json.loads(capsys.readouterr().out)["rewards"] == {"vlm-judge": honest_mark("a red cup"), "shape": 5.0}
    assert len(server.asked) == 1
    server.answer = lambda _: (403, {}, f"no {KEY}".encode())
    line = refused(capsys, [*args, "vlm-judge(model=other)"])
    assert line.endswith("reward vlm-judge got no marks for 'a red cup': 403 Forbidden: no ***")
    assert VLMJudge.differentiable is False


def honest_mark(prompt: str) -> float:
    """What `honest` gives for black pictures."""
    return float((len(f"The text: {json.dumps(prompt)}\nThe object, 1 views of it:")) % 7)
