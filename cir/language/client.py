"""A chat-completions endpoint, asked politely: retries with growing pauses, and a limit on requests."""

import os
import random
import threading
from collections.abc import Mapping
from typing import Any

from cir.errors import InputError, RunError

KEY = "OPENAI_API_KEY"
"""The environment variable that holds the key; there is no other way to give one."""
LONGEST_PAUSE = 60.0
"""Seconds between two attempts at most, unless the endpoint asks for more."""


class LimitReached(Exception):
    """The number of requests the user allows has been sent."""


class Stopping(Exception):
    """The run is ending; a question that waits for its next attempt is given up."""


class Client:
    """Asks a model one question at a time; several threads may share it.

    `endpoint` is the base address of any server that speaks OpenAI's protocol, such as http://localhost:8000/v1.
    `limit` bounds the requests sent, attempts included, 0 for none; `pause` is the first pause in seconds.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        parameters: Mapping[str, Any],
        *,
        limit: int = 0,
        attempts: int = 6,
        pause: float = 1.0,
        timeout: float = 120.0,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise InputError("--llm: needs the openai package (pip install 'cir[llm]')") from None
        if not os.environ.get(KEY):
            raise InputError(
                f"--llm: set {KEY} to the endpoint's key (to any text, where a local server asks for none)"
            )
        if not endpoint.startswith(("http://", "https://")) or not model:
            raise InputError("--llm: expected --endpoint http(s)://... and --model NAME")
        self.endpoint, self.model, self.parameters = endpoint, model, dict(parameters)
        self.limit, self.attempts, self.pause = limit, attempts, pause
        self.sent = 0
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._errors: Any = openai
        self._client = openai.OpenAI(base_url=endpoint, api_key=os.environ[KEY], max_retries=0, timeout=timeout)

    def ask(self, text: str) -> str:
        """Send one message and return the answer's text, empty where the model says nothing.

        Raises `LimitReached`, `Stopping`, `InputError` for a request the endpoint refuses (a wrong key, an unknown
        model), `RunError` for an endpoint that stays out of reach.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return self._send(text)
            except (
                self._errors.RateLimitError,
                self._errors.APIConnectionError,
                self._errors.InternalServerError,
            ) as e:
                if attempt == self.attempts:
                    raise RunError(
                        f"{self.endpoint}: gave up after {attempt} attempts ({_told(e)}); the answers so far are kept, "
                        "and the same command goes on from there"
                    ) from None
                if self.stop.wait(self._delay(attempt, e)):
                    raise Stopping from None
            except self._errors.OpenAIError as error:
                raise InputError(f"{self.endpoint}: refused a request for {self.model!r} ({_told(error)})") from None
        raise AssertionError("unreachable")

    def _send(self, text: str) -> str:
        """Send one request, if the limit allows."""
        with self._lock:
            if self.stop.is_set():
                raise Stopping
            if self.limit and self.sent >= self.limit:
                raise LimitReached
            self.sent += 1
        done = self._client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": text}], **self.parameters
        )
        return (done.choices[0].message.content or "") if done.choices else ""

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _delay(self, attempt: int, error: Exception) -> float:
        """Say how many seconds to wait: what the endpoint asks for, or twice as long each time, scattered."""
        headers = getattr(getattr(error, "response", None), "headers", {})
        try:
            return max(0.0, min(float(headers.get("retry-after", "")), 10 * LONGEST_PAUSE))
        except ValueError:
            return min(self.pause * 2 ** (attempt - 1), LONGEST_PAUSE) * (0.5 + random.random() / 2)


def _told(error: Exception) -> str:
    """Say an error in one short line."""
    status = getattr(error, "status_code", None)
    return f"{f'{status}: ' if status else ''}{' '.join(str(error).split())[:200]}"
