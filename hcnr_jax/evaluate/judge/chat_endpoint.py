"""A client of OpenAI-compatible chat endpoints, such as a vLLM server or a hosted service. Standard library alone."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from hcnr_jax.errors import InputError, RunError

KEY = "OPENAI_API_KEY"
ATTEMPTS = 6
AT_ONCE = 4
MAX_TOKENS = 512
"""Of a reply: one word, and the reasoning that some models write before it."""

_LONGEST_WAIT = 60.0
_PATH = "/chat/completions"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would carry the key and the questions to another address."""

    def redirect_request(self, *args: Any) -> None:
        """Refuse, so that the redirect is reported as an error of that status."""


@dataclass(frozen=True)
class ChatEndpoint:
    """Asks one model of an endpoint, up to AT_ONCE requests at a time.

    Args:
        url: base address such as https://host/v1, or the whole address of chat completions.
        model: name of the model at the endpoint.
        key: sent as a bearer token; None sends none.
        timeout: seconds that a request may take.
        sleep: waits between attempts.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    @property
    def address(self) -> str:
        """The address that is asked."""
        url = self.url.rstrip("/")
        return url if url.endswith(_PATH) else url + _PATH

    @property
    def made_of(self) -> str:
        """Name the address and the model."""
        return f"{self.address} {self.model}"

    def ask(self, texts: Sequence[str], take: Callable[[int, str], None]) -> None:
        """Ask every text; `take` is called in this thread, in the order in which replies arrive.

        Where a request fails, no further one is sent, and the replies to those under way are taken before the error
        is raised: each reply may have cost money.

        Raises:
            InputError: the endpoint refuses the request, the key or the model.
            RunError: the endpoint fails or cannot be reached after ATTEMPTS attempts, or replies in another format.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waiting = {pool.submit(self.reply, text): index for index, text in enumerate(texts)}
            try:
                for done in as_completed(list(waiting)):
                    reply = done.result()
                    take(waiting.pop(done), reply)
            except (InputError, RunError):
                pool.shutdown(cancel_futures=True)
                for done, index in waiting.items():
                    if not done.cancelled() and done.exception() is None:
                        take(index, done.result())
                raise
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def reply(self, text: str) -> str:
        """Return the reply to one text. Status 429, 5xx and a broken connection are tried again, after longer waits."""
        cause = ""
        for attempt in range(ATTEMPTS):
            try:
                return self._content(self._request(text))
            except urllib.error.HTTPError as error:
                cause, wait = _status(error), error.headers.get("Retry-After")
                if error.code != 429 and error.code < 500:
                    raise InputError(self._refused(error.code, cause)) from error
            except (OSError, http.client.HTTPException) as error:
                cause, wait = str(getattr(error, "reason", "") or error or type(error).__name__), None
            if attempt + 1 < ATTEMPTS:
                self.sleep(_wait(attempt, wait))
        raise RunError(
            f"--judge {self.url}: no reply after {ATTEMPTS} attempts ({cause}); check the endpoint, and repeat the "
            "command: all answers and replies so far are kept"
        )

    def _request(self, text: str) -> bytes:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(self.address, json.dumps(body).encode(), headers)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as answer:
            found: bytes = answer.read()
        return found

    def _content(self, raw: bytes) -> str:
        """Return the text of a chat completion; a reply without text is empty."""
        try:
            content = json.loads(raw)["choices"][0]["message"].get("content")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunError(
                f"--judge {self.url}: expected a chat completion (choices, message, content), found "
                f"{_cut(raw)}; give the base address of an OpenAI-compatible endpoint, such as http://host:8000/v1"
            ) from error
        return content if isinstance(content, str) else ""

    def _refused(self, code: int, cause: str) -> str:
        remedy = "check the address and --judge-model"
        if code in (401, 403):
            remedy = f"set {KEY} to a key of this endpoint"
        elif 300 <= code < 400:
            remedy = "redirects are not followed: give the final address"
        return f"--judge {self.url}: the endpoint refused the request ({cause}); {remedy}"


def check_url(url: str) -> None:
    """Refuse (InputError) an address without a host, or with a port that is no number."""
    try:
        parts = urllib.parse.urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise InputError(f"--judge {url}: expected an address such as http://host:8000/v1, found no host or a bad port")


def is_url(judge: str) -> bool:
    """Tell an address from a model folder."""
    return judge.startswith(("http://", "https://"))


def _wait(attempt: int, asked: str | None) -> float:
    """Return the seconds before the next attempt: those that the endpoint asks for, or else 1, 2, 4, ..."""
    try:
        seconds = float(asked) if asked else 2.0**attempt
    except ValueError:  # a date
        seconds = 2.0**attempt
    return min(max(seconds, 0.0), _LONGEST_WAIT)


def _status(error: urllib.error.HTTPError) -> str:
    try:
        said = _cut(error.read())
    except OSError:
        said = ""
    return f"status {error.code}{': ' + said if said else ''}"


def _cut(raw: bytes, letters: int = 200) -> str:
    text = " ".join(raw.decode("utf-8", "replace").split())
    return text if len(text) <= letters else f"{text[: letters - 3]}..."
