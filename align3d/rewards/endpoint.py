"""Questions to an OpenAI-compatible endpoint, within bounds: of time, of bytes, and of who gets to see the key.

Address and key are read from the environment, a pair of variables at a time, so that no address is sent the key of
another. The key is in the header of requests to that address and nowhere else: redirections are not followed, and it is
cut out of whatever the endpoint says.
"""

from __future__ import annotations

import atexit
import contextlib
import email.utils
import functools
import http.client
import json
import math
import os
import random
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PLACES = (("ALIGN3D_VLM_URL", "ALIGN3D_VLM_KEY"), ("OPENAI_BASE_URL", "OPENAI_API_KEY"))  # the first that is set
BUSY = {408, 409, 425, 429}  # and what begins with 5: worth another attempt
SPENT = "insufficient_quota"  # in a 429 that no waiting will change
OPTIONAL = ("response_format", "temperature", "max_tokens")  # may be left out where an endpoint does not know them
FIRST, LONGEST = 1.0, 30.0  # seconds before the second attempt, and at most before any, unless the endpoint says so
MAX_BYTES = 1 << 22  # of an answer
SHOWN = 200  # characters of what an endpoint says that are repeated


class Refused(ValueError):
    """The endpoint will not answer this, however often it is asked."""

    def __init__(self, message: str, status: int = 0, whole: str = "") -> None:
        super().__init__(message)
        self.status = status  # of HTTP; 0: it did not get that far
        self.whole = whole  # what the endpoint said, uncut


class _Busy(Exception):
    """The endpoint may answer later."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after  # seconds that it asks to wait


@dataclass(frozen=True)
class Endpoint:
    """Where questions go, and how long that may take."""

    url: str  # without /chat/completions
    key: str = field(repr=False)  # "" where none is needed
    timeout: float = 60.0  # seconds for one answer
    retries: int = 5  # attempts after the first
    unknown: set[str] = field(default_factory=set, compare=False)  # of OPTIONAL: what it has refused to read

    def reach(self) -> None:
        """Make sure that somebody is there who takes the key.

        Raises:
            ValueError: If not.
        """
        try:
            self._exchange("/models", None, self.timeout)
        except _Busy as busy:
            raise ValueError(f"cannot reach {self.url}: {busy}; start the server, or correct {PLACES[0][0]}") from None
        except Refused as error:
            if error.status in (401, 403):
                raise ValueError(f"{self.url} refuses the key: {error}; correct {PLACES[0][1]}") from None
            # what else is refused is the list of models, which not every endpoint has

    def ask(self, body: Mapping[str, Any], end: float, seed: str, stop: threading.Event) -> dict[str, Any]:
        """What the endpoint answers, tried again where that may help.

        Args:
            body: Of the request; those of OPTIONAL that this endpoint does not know are left out.
            end: When to give up, on the clock of time.monotonic.
            seed: Decides how much longer each wait is than it had to be, so that many who failed together do not come
                again together.
            stop: Set by others when nobody wants the answer any more; ends a wait.

        Raises:
            ValueError: If it does not answer in time, refuses, or what it sends is no JSON object.
        """
        draw, attempt = random.Random(seed), 0
        while True:
            sent = {name: value for name, value in body.items() if name not in self.unknown}
            try:
                return self._object(self._exchange("/chat/completions", sent, end - time.monotonic()))
            except Refused as error:
                odd = {name for name in OPTIONAL if name in sent and name in error.whole}
                if error.status not in (400, 422) or not odd:
                    raise
                self.unknown.update(odd)
            except _Busy as busy:
                attempt += 1
                wait = max(busy.after, min(LONGEST, FIRST * 2 ** (attempt - 1)) * (0.5 + draw.random()))
                if attempt > self.retries:
                    raise ValueError(f"gave up after {attempt} attempts: {busy}") from None
                if time.monotonic() + wait > end:
                    raise ValueError(f"{busy}; no time is left to wait {wait:.3g} s and ask again") from None
                if stop.wait(wait):
                    raise ValueError(f"{busy}; not asked again, as another question failed") from None

    def redact(self, text: str) -> str:
        """A text without the key."""
        return text.replace(self.key, "***") if self.key else text

    def shown(self, text: str) -> str:
        """The beginning of what an endpoint said, for an error of one line."""
        line = " ".join(self.redact(text).split())[:SHOWN]
        return "".join(c if c.isprintable() else "?" for c in line)

    def _object(self, data: bytes) -> dict[str, Any]:
        text = data.decode("utf-8", "replace")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Refused(f"{self.url} sent no JSON object but {self.shown(text)!r}; is it the right address?")
        return found

    def _exchange(self, path: str, body: Mapping[str, Any] | None, left: float) -> bytes:
        """Send one request and read what comes, for at most `timeout` and `left` seconds.

        Raises:
            _Busy: If another attempt may help.
            Refused: If not.
        """
        seconds = min(self.timeout, left)
        if seconds <= 0:
            raise Refused("no time is left")
        headers = {"Content-Type": "application/json", "User-Agent": "align3d"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        late = threading.Event()
        try:
            with _watched(seconds, late) as sockets:
                try:
                    with _opener(sockets, late).open(request, timeout=seconds) as response:
                        data = self._read(response)
                    if late.is_set():  # then it may have been cut off where it could have ended
                        raise TimeoutError
                    return data
                except urllib.error.HTTPError as error:
                    with error:
                        raise self._failure(error) from None
        except Refused:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise Refused(f"{self.url} cannot be trusted: {reason.verify_message}") from None
            if late.is_set() or isinstance(reason, TimeoutError):
                raise _Busy(f"no whole answer within {seconds:.3g} s") from None
            said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise _Busy(self.shown(str(said))) from None

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        data = response.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise Refused(f"{self.url} sent more than {MAX_BYTES >> 20} MiB")
        if response.length:
            raise http.client.IncompleteRead(data, response.length)
        return data

    def _failure(self, error: urllib.error.HTTPError) -> Exception:
        """What an answer other than 200 means."""
        try:
            text = error.read(MAX_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError, http.client.HTTPException):
            text = ""
        said = f"{error.code} {self.shown(str(error.reason))}: {self.shown(_message(text))}".rstrip(": ")
        if 300 <= error.code < 400:
            return Refused(f"{self.url} sends elsewhere ({said}); give the address where that ends", error.code)
        if (error.code in BUSY or error.code >= 500) and SPENT not in text:
            after = _after(error.headers.get("Retry-After"))
            return _Busy(said + (f", to be asked again after {after:.3g} s" if after else ""), after)
        return Refused(said, error.code, text)


@dataclass
class Tally:
    """What was asked and answered in this process, by all who ask."""

    asked: int = 0  # questions
    kept: int = 0  # answers that were there already
    sent: int = 0  # tokens, as endpoints count them
    answered: int = 0  # tokens
    cost: float = 0.0  # USD, of those whose price was told
    lock: Any = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int | float) -> None:
        """Add to some of the numbers; from any thread."""
        with self.lock:
            for name, value in counts.items():
                setattr(self, name, getattr(self, name) + value)

    def line(self) -> str:
        """All of it for people to read."""
        cost = f", {self.cost:.4f} USD" if self.cost else ""
        tokens = f"{self.sent} tokens sent, {self.answered} answered{cost}"
        if self.asked and not self.sent + self.answered:
            tokens = "the endpoint does not say how many tokens"
        return f"vlm-judge: {self.asked} questions asked ({tokens}), {self.kept} answers known before"

    def say(self) -> None:
        """Print it on standard error, unless nothing was asked."""
        if self.asked or self.kept:
            with contextlib.suppress(OSError, ValueError):  # nobody may be there any more
                print(self.line(), file=sys.stderr, flush=True)


@functools.cache
def tally() -> Tally:
    """The one of this process, which is told at its end."""
    one = Tally()
    atexit.register(one.say)
    return one


def from_environment(timeout: float, retries: int) -> Endpoint:
    """The endpoint that the environment names.

    Raises:
        ValueError: If there is none, or address or key cannot be ones; the key is not shown.
    """
    for place, secret in PLACES:
        url = os.environ.get(place, "").strip().rstrip("/")
        if url:
            _check_url(url, place)
            key = os.environ.get(secret, "").strip()
            if not all("!" <= c <= "~" for c in key):
                raise ValueError(f"{secret} has blanks or characters that no key has; set it again")
            return _endpoint(url, key, timeout, retries)
    (place, secret), (other, other_secret) = PLACES
    raise ValueError(
        f"no endpoint is set; export {place}=https://HOST/v1 and, if it wants a key, {secret} "
        f"(or {other} and {other_secret})"
    )


@functools.lru_cache(maxsize=16)
def _endpoint(url: str, key: str, timeout: float, retries: int) -> Endpoint:
    """One object for each, which remembers what its endpoint does not know."""
    return Endpoint(url, key, timeout, retries)


def _check_url(url: str, place: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018 - refuses what is no number
    except ValueError:
        raise ValueError(f"{place} is no address; set it to https://HOST/v1") from None
    if "@" in parts.netloc:
        raise ValueError(f"{place} must not hold a name or password; the key has a variable of its own")
    known = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
    if not known or not all("!" <= c <= "~" for c in url):
        got = url[:SHOWN].partition("?")[0] + "?..." * ("?" in url)  # what follows may be a key
        raise ValueError(f"{place} must be http:// or https://, a host and a path, and nothing after it, got {got!r}")


@contextlib.contextmanager
def _watched(seconds: float, late: threading.Event) -> Iterator[list[socket.socket]]:
    """Within, the sockets that are put into the list are cut off when time is up, and `late` says so.

    A time limit of a socket is for each of its reads: a byte now and then would go on for ever.
    """
    sockets: list[socket.socket] = []

    def cut() -> None:
        late.set()
        for one in sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield sockets
    finally:
        timer.cancel()


def _opener(sockets: list[socket.socket], late: threading.Event) -> urllib.request.OpenerDirector:
    """What sends requests: over the proxies of the environment, without following redirections."""

    def watched(kind: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
        class Connection(kind):
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)
                if late.is_set():  # when there was nothing to cut off yet
                    raise TimeoutError

        return Connection

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(watched(http.client.HTTPConnection), request)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(watched(http.client.HTTPSConnection), request, context=ssl.create_default_context())

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    return urllib.request.build_opener(PlainHandler, SecureHandler, Stay)


def _message(text: str) -> str:
    """The message in an answer that tells of an error."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    error = found.get("error", found) if isinstance(found, dict) else found
    message = error.get("message", error) if isinstance(error, dict) else error
    return message if isinstance(message, str) else json.dumps(message)


def _after(value: str | None) -> float:
    """Seconds that a Retry-After asks for: a number or a date; 0 if it says nothing that can be read."""
    try:
        seconds = float(value or 0)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(value)
        except (TypeError, ValueError):
            return 0.0
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
