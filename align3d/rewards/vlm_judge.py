"""Marks of a vision-language model behind an OpenAI-compatible endpoint, of all views of an object at once or of each.

For evaluation, and to choose among candidates: an answer takes seconds and often costs money. It has no gradient.

After the grader of RewardSDS (arXiv 2503.09601), which asks for five aspects and an overall mark, 0 to 10 each, by a
schema. Its aspects are of pictures (accuracy, creativity, visual quality, consistency, emotional resonance), one view
at a time: so are those of `of="picture"`, in other words. The others are of objects, all views at a time.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from align3d.rewards.rubrics import OBJECT, REMARKS, RUBRICS, Rubric

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    import numpy as np
    from jaxtyping import Float, UInt8
    from torch import Tensor

    from align3d.rewards.endpoint import Endpoint
    from align3d.types import Views

MAX_TOKENS = 1000  # of an answer
MAX_FILE = 1 << 16  # bytes of a kept answer
MAX_SIZE = 4096  # pixels
SHOWN = 200  # characters of a bad answer that are repeated


@dataclass(frozen=True)
class VLMJudge:
    """Marks from 0 to 10 by a vision-language model behind an OpenAI-compatible endpoint, for objects or pictures."""

    model: str = ""  # name of the model, as the endpoint has it; address and key: ALIGN3D_VLM_URL, ALIGN3D_VLM_KEY
    of: Literal["object", "picture"] = "object"  # what is marked: an object, by all its views at once, or each view
    mark: str = "overall"
    """which mark is the reward: overall, mean (of the five aspects), or an aspect: alignment, geometry, texture,
    consistency, cleanliness; of pictures alignment, originality, quality, coherence, mood. All are asked for, and kept
    """
    size: int = 512  # pixels, longer side of the views that are sent; larger ones are shrunk
    concurrency: int = 4  # questions that are asked at a time
    timeout: float = 60.0  # seconds for one answer
    retries: int = 5  # further attempts where the endpoint is busy, fails or does not answer
    patience: float = 300.0  # seconds for an object in all
    cache: Path | None = None  # folder of answers, none of which is asked for twice; none = in the user's cache folder
    input_price: float = 0.0  # USD per million tokens that are sent, for the sum at the end
    output_price: float = 0.0  # USD per million tokens that are answered

    differentiable: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})
    incidental: ClassVar[frozenset[str]] = frozenset(  # an evaluation goes on with others of these
        {"concurrency", "timeout", "retries", "patience", "cache", "input_price", "output_price"}
    )

    def __post_init__(self) -> None:
        if self.of not in RUBRICS:
            raise ValueError(f"of must be {' or '.join(RUBRICS)}, got {self.of!r}")
        if self.mark not in (*self.rubric.marks, "mean"):
            known = ", ".join((*self.rubric.marks, "mean"))
            raise ValueError(f"mark must be one of {known} for of={self.of}, got {self.mark!r}")
        for name, least, most in (("size", 16, MAX_SIZE), ("concurrency", 1, 64), ("retries", 0, 100)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be {least} to {most}, got {getattr(self, name)}")
        for name in ("timeout", "patience"):
            if not 0 < getattr(self, name) <= 86400:
                raise ValueError(f"{name} must be above 0 and at most 86400 seconds, got {getattr(self, name)}")
        for name in ("input_price", "output_price"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse early what cannot work: no model or address, a folder that cannot be written, nobody there.

        Raises:
            ValueError: Says which.
        """
        if not self.model:
            raise ValueError(
                "reward vlm-judge needs the name of a model, as the endpoint has it: vlm-judge(model=NAME)"
            )
        endpoint = self._endpoint()
        _check_folder(self.folder)
        _reach(endpoint)

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B _"]:
        """The mark of each object, (B, 1), or of each view, (B, V); 0 to 10.

        Answers are kept as they come, so that after an error the same call asks only for what is missing.

        Raises:
            ValueError: If the endpoint does not answer in time, refuses, or answers twice what cannot be read; names
                the prompt.
        """
        import torch

        views.require("rgb", by="reward vlm-judge")
        endpoint = self._endpoint()
        seen = pictures(views.rgb, self.size)
        B, V = seen.shape[:2]
        each = (
            [seen[b] for b in range(B)]
            if self.of == "object"
            else [seen[b, v, None] for b in range(B) for v in range(V)]
        )
        texts = [prompt for prompt in prompts for _ in range(len(each) // B)]
        questions = [Question(self.model, *pair, self.rubric) for pair in zip(texts, each, strict=True)]
        keys = [question.key(endpoint.url) for question in questions]
        answers = self._answers(endpoint, dict(zip(keys, questions, strict=True)))
        chosen = tuple(self.rubric.aspects) if self.mark == "mean" else (self.mark,)
        values = [sum(answers[key][name] for name in chosen) / len(chosen) for key in keys]
        return torch.tensor(values, dtype=torch.float32, device=views.rgb.device).view(B, -1)

    @property
    def rubric(self) -> Rubric:
        """What is asked for."""
        return RUBRICS[self.of]

    @property
    def folder(self) -> Path:
        """Where answers are kept."""
        if self.cache is not None:
            return self.cache
        from align3d.scenes.raster.compile import cache_folder

        return cache_folder() / "vlm-judge"

    def _endpoint(self) -> Endpoint:
        from align3d.rewards.endpoint import from_environment

        return from_environment(self.timeout, self.retries)

    def _answers(self, endpoint: Endpoint, questions: Mapping[str, Question]) -> dict[str, dict[str, float]]:
        """The marks of each question by its key: those that are kept, then those of the endpoint.

        After a failure, no further question is asked; those that had been are answered and kept, and then it is raised.
        """
        import threading
        from concurrent.futures import ThreadPoolExecutor

        from align3d.rewards.endpoint import tally

        found = {key: kept for key in questions if (kept := read(self.folder, key, self.rubric)) is not None}
        missing = [key for key in questions if key not in found]
        tally().add(kept=len(found))
        stop, errors = threading.Event(), []

        def answer(key: str) -> None:
            if stop.is_set():
                return
            try:
                found[key] = self._ask(endpoint, questions[key], key, stop)
            except BaseException as error:
                errors.append(error)
                stop.set()

        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                list(pool.map(answer, missing))
            finally:
                stop.set()  # Ctrl-C: those who wait to ask again need not
        if errors:
            raise errors[0]
        return found

    def _ask(self, endpoint: Endpoint, question: Question, key: str, stop: threading.Event) -> dict[str, float]:
        """Ask, at most twice where the answer cannot be read; keep what is answered."""
        import time

        from align3d.rewards.endpoint import tally

        end = time.monotonic() + self.patience
        messages = question.messages()
        bad = None
        for attempt in range(2):
            body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}
            schema = {"name": "marks", "strict": True, "schema": self.rubric.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
            try:
                reply = endpoint.ask(body, end, f"{key}{attempt}", stop)
            except ValueError as error:
                raise ValueError(f"reward vlm-judge got no marks for {question.prompt!r}: {error}") from None
            tokens = tokens_of(reply)
            cost = (self.input_price * tokens[0] + self.output_price * tokens[1]) / 1e6
            tally().add(asked=1, sent=tokens[0], answered=tokens[1], cost=cost)
            text = endpoint.redact(text_of(reply))
            try:
                marks, remarks = self.rubric.read(text)
            except ValueError as error:
                bad = (error, repr(endpoint.shown(text)) if text else instead(reply, endpoint))
                messages = [*messages, *([{"role": "assistant", "content": text[: 10 * SHOWN]}] if text else [])]
                again = f"That cannot be used: {error}. Answer with the JSON object alone."
                messages.append({"role": "user", "content": again})
                continue
            kept = {"marks": marks, REMARKS: endpoint.redact(remarks), "prompt": question.prompt, "model": self.model}
            write(self.folder, key, kept | {"tokens": tokens})
            return marks
        error, said = bad
        raise ValueError(
            f"reward vlm-judge got no marks for {question.prompt!r}: {error}, asked twice; {self.model} said {said}"
        )


@dataclass(frozen=True, eq=False)
class Question:
    """What the model is asked about one object, or one picture."""

    model: str
    prompt: str
    pixels: UInt8[np.ndarray, "V h w 3"]
    rubric: Rubric = OBJECT

    def key(self, url: str) -> str:
        """What the answer of the endpoint at an address is kept under: a digest of all that it depends on."""
        import hashlib

        told = [url, self.model, self.rubric.system, self.text(), self.rubric.schema, self.pixels.shape]
        return hashlib.sha256(json.dumps(told).encode() + self.pixels.tobytes()).hexdigest()

    def text(self) -> str:
        """The question itself."""
        shown = self.rubric.shown.format(num=len(self.pixels))
        return f"The text: {json.dumps(self.prompt, ensure_ascii=False)}\n{shown}"

    def messages(self) -> list[dict[str, Any]]:
        """The question as a chat, with the views as PNG files in it."""
        import base64
        import io

        from PIL import Image

        parts: list[dict[str, Any]] = [{"type": "text", "text": self.text()}]
        for view in self.pixels:
            file = io.BytesIO()
            Image.fromarray(view).save(file, "PNG")
            address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            parts.append({"type": "image_url", "image_url": {"url": address}})
        return [{"role": "system", "content": self.rubric.system}, {"role": "user", "content": parts}]


def pictures(rgb: Float[Tensor, "B V 3 H W"], size: int) -> UInt8[np.ndarray, "B V h w 3"]:
    """The views in 8 bit, shrunk so that neither side has more than `size` pixels.

    Raises:
        ValueError: If a colour is outside [0, 1].
    """
    from align3d.rewards.preprocess import require_colours, resize
    from align3d.scenes.pictures import to_uint8

    rgb = rgb.detach().float()
    require_colours(rgb, "vlm-judge")
    height, width = rgb.shape[-2:]
    if max(height, width) > size:
        scale = size / max(height, width)
        small = resize(rgb.flatten(0, 1), (max(1, round(height * scale)), max(1, round(width * scale))))
        rgb = small.unflatten(0, rgb.shape[:2])
    return to_uint8(rgb)


def text_of(reply: Mapping[str, Any]) -> str:
    """What the model said in a reply of the endpoint; "" if it said nothing."""
    try:
        message = reply["choices"][0]["message"]
        said = message.get("content") or message.get("refusal") or ""
        parts = said if isinstance(said, list) else [said]  # some have a list of parts
        return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in parts)
    except (LookupError, TypeError, AttributeError):
        return ""


def instead(reply: Mapping[str, Any], endpoint: Endpoint) -> str:
    """What a reply without an answer was, in words."""
    choices = reply.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        return f"nothing: the reply has no choices and is {endpoint.shown(json.dumps(reply, ensure_ascii=False))!r}"
    why, message = first.get("finish_reason"), first.get("message")
    if why == "length":
        return f"nothing within {MAX_TOKENS} tokens, which its thoughts may have used up; take a model that thinks less"
    reason = f", finish_reason {endpoint.shown(str(why))}" if why is not None else ""
    return f"nothing: its message is {endpoint.shown(json.dumps(message, ensure_ascii=False))!r}{reason}"


def tokens_of(reply: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens that were sent and answered, as the endpoint counts them; 0 where it does not."""
    usage = reply.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    sent, answered = (count if isinstance(count, int) and count >= 0 else 0 for count in counts)
    return sent, answered


def read(folder: Path, key: str, rubric: Rubric = OBJECT) -> dict[str, float] | None:
    """The marks that are kept under a key; None if there are none that can be read."""
    path = _path(folder, key)
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_FILE))
        return rubric.read(json.dumps(found["marks"]))[0]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def write(folder: Path, key: str, answer: Mapping[str, Any]) -> None:
    """Keep an answer.

    Raises:
        ValueError: If the folder cannot be written.
        WriteError: If the disk is full.
    """
    from align3d.files import atomic_write

    short = {REMARKS: answer[REMARKS][:1000], "prompt": answer["prompt"][:1000]}
    atomic_write(_path(folder, key), json.dumps({**answer, **short}, ensure_ascii=True, indent=1) + "\n")


def _path(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.json"


def _check_folder(folder: Path) -> None:
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-"):
            pass
    except OSError as error:
        raise ValueError(
            f"reward vlm-judge cannot keep answers in {folder}: {error.strerror}; choose another folder with `cache`"
        ) from None


@functools.lru_cache(maxsize=16)
def _reach(endpoint: Endpoint) -> None:
    """Once for each endpoint, if it succeeds."""
    endpoint.reach()
