"""An endpoint on this machine whose answers a test sets, and a judge that asks it."""

import base64
import functools
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from align3d.rewards import endpoint
from align3d.rewards.rubrics import OBJECT
from align3d.rewards.vlm_judge import VLMJudge
from align3d.scenes.cameras import orbit
from align3d.types import Views

B, V, H, W = 2, 3, 20, 28
PROMPTS = ["a red cup", 'a "blue" cup']
KEY = "sk-secret-0123456789"


def views(rows: int = B, seed: int = 0) -> Views:
    rgb = torch.rand(rows, V, 3, H, W, generator=torch.Generator().manual_seed(seed))
    angles = torch.arange(V).float().expand(rows, V)
    return Views(orbit(angles, angles, height=H, width=W), rgb=rgb)


def reply(content: str, tokens: tuple[int, int] = (1000, 50)) -> bytes:
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}], "usage": usage}).encode()


def marks(overall: float = 7, **others: float) -> str:
    return json.dumps({"remarks": "fine", **dict.fromkeys(OBJECT.aspects, 5), "overall": overall} | others)


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


@contextmanager
def serving(folder: Path, monkeypatch) -> Iterator[Server]:
    """An endpoint that the environment names, a cache of one's own, and no long waits."""
    one = Server()
    monkeypatch.setenv("ALIGN3D_VLM_URL", one.url)
    monkeypatch.setenv("ALIGN3D_VLM_KEY", KEY)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(endpoint, "FIRST", 0.01)
    monkeypatch.setattr(endpoint, "tally", functools.cache(endpoint.Tally))  # one that says nothing at the end
    yield one
    one.http.shutdown()
    one.http.server_close()


def judge(**options) -> VLMJudge:
    return VLMJudge(model="m", **({"timeout": 30.0, "patience": 60.0} | options))
