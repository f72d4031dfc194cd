"""Text triplets written by a language model: one question per caption, answers checked, in the captions' order."""

import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from cir.errors import InputError
from cir.language.answers import Answers, key_of
from cir.language.client import Client, LimitReached
from cir.language.rules import Row
from cir.language.templates import read_text
from cir.language.writing import Outcome

PROMPT = """The caption of a photograph:

{caption}

Invent {count} different edits of this photograph. Each changes one visible thing: what there is, how it looks, how many
there are, what it does, or where it is. For each edit write

conditioning_caption: what should be different, in the few words a person would use to ask for it
target_caption: the caption of the edited photograph, in the style of the given caption, complete by itself

Answer with a JSON list of {count} objects that have these two keys, and with nothing else.
"""
"""The question, this project's own wording; a file may take its place."""
KEYS = ("conditioning_caption", "target_caption")
LONGEST = 600
"""Characters of a text that counts."""
NOT_JSON, NO_PAIR, EMPTY = "answer is not JSON", "answer holds no usable pair of texts", "answer is empty"


def load_prompt(path: Path | None) -> str:
    """Read a question from a file, or take `PROMPT`; it must name `{caption}`, and may name `{count}`."""
    text = PROMPT if path is None else read_text(path)
    if "{caption}" not in text:
        raise InputError(f"{path}: the prompt does not name {{caption}}, so every question would be the same")
    return text


def render(prompt: str, caption: str, count: int) -> str:
    """Fill a question; other braces stay, for a prompt may show JSON."""
    values = {"{caption}": caption, "{count}": str(count)}
    return re.sub(r"{caption}|{count}", lambda m: values[m[0]], prompt)


def parse(answer: str, caption: str, most: int) -> tuple[list[Row], str]:
    """Take up to `most` triplets from an answer; without a usable one, the reason comes instead.

    A code fence or words around the JSON are passed over; an object may stand for a list of one, or hold the list.
    """
    if not answer.strip():
        return [], EMPTY
    value = _json(answer)
    if value is None:
        return [], NOT_JSON
    if isinstance(value, dict) and not any(key in value for key in KEYS):
        value = next((inner for inner in value.values() if isinstance(inner, list)), [])
    rows: list[Row] = []
    for item in value if isinstance(value, list) else [value]:
        texts = [_text(item.get(key)) for key in KEYS] if isinstance(item, dict) else [""]
        same = {caption.casefold(), *(row.target.casefold() for row in rows)}
        if all(texts) and texts[-1].casefold() not in same and len(rows) < most:
            rows.append(Row(caption, texts[0], texts[1], "llm"))
    return rows, "" if rows else NO_PAIR


def _json(answer: str) -> Any:
    """Find the JSON in an answer; None where there is none."""
    for opening, closing in (("", ""), ("[", "]"), ("{", "}")):
        start = answer.find(opening)
        stop = answer.rfind(closing) + 1 if closing else len(answer)
        try:
            found = json.loads(answer[start:stop]) if 0 <= start < stop else None
        except (ValueError, RecursionError):
            continue
        if isinstance(found, (list, dict)):
            return found
    return None


def _text(value: Any) -> str:
    """Take a text on one line; empty for anything that is none, is too long, or cannot be written as UTF-8."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    broken = any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)
    return "" if broken or len(text) > LONGEST else text


@dataclass
class Asker:
    """Asks about captions in a given order, `concurrency` questions at a time, and remembers every answer."""

    client: Client
    answers: Answers
    prompt: str
    captions: Sequence[str]
    order: Int64[np.ndarray, " n"]
    per_caption: int = 1
    concurrency: int = 8
    limited: bool = False

    def outcomes(self, position: int, wanted: int = 0) -> Iterator[Outcome]:
        """Yield the outcomes from a position on; no more questions are open than `wanted` triplets need (0: all)."""
        waiting: deque[tuple[int, Future[str]]] = deque()
        made = 0
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            while True:
                while position < len(self.order) and len(waiting) < 2 * self.concurrency:
                    if wanted and waiting and made + len(waiting) * self.per_caption >= wanted:
                        break
                    number = int(self.order[position])
                    waiting.append((number, pool.submit(self._answer, self.captions[number])))
                    position += 1
                if not waiting:
                    return
                number, answer = waiting.popleft()
                rows, why = parse(answer.result(), self.captions[number], self.per_caption)
                made += len(rows)
                yield number, rows, why
        except LimitReached:
            self.limited = True
        finally:
            self.client.stop.set()  # pauses end at once; requests under way are waited for, and their answers kept
            pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, caption: str) -> str:
        """Look an answer up, or ask for it."""
        question = render(self.prompt, caption, self.per_caption)
        key = key_of(self.client.model, question, self.client.parameters)
        known = self.answers.get(key)
        if known is not None:
            return known
        answer = self.client.ask(question)
        self.answers.add(key, answer, model=self.client.model, caption=caption)
        return answer
