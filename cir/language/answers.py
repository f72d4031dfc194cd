"""Raw answers of a language model, kept for good: what was paid for once is not asked again."""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cir.errors import InputError


def key_of(model: str, prompt: str, parameters: Mapping[str, Any]) -> str:
    """Identify a question: the model, the whole text sent to it, and the parameters sent along."""
    question = json.dumps([model, prompt, dict(parameters)], sort_keys=True)
    return hashlib.sha256(question.encode()).hexdigest()[:32]


class Answers:
    """Answers by key in a file of JSON lines that only grows; each is on disk before `add` returns.

    A last line that a killed run left unfinished is cut off; other lines that cannot be read count as `damaged`, and
    their questions are asked again. Threads may share it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = open(path, "a+b")
        except OSError as error:
            raise InputError(f"{path}: cannot be opened for the answers ({error.strerror})") from None
        self._read()

    def _read(self) -> None:
        """Find where the answers lie."""
        self._file.seek(0)
        start = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                self._file.truncate(start)
                break
            try:
                row = json.loads(line)
                if not isinstance(row["answer"], str):
                    raise TypeError
                self._places[row["key"]] = (start, len(line))
            except (ValueError, KeyError, TypeError):
                self.damaged += 1
            start += len(line)

    def __len__(self) -> int:
        """Count the answers."""
        return len(self._places)

    def get(self, key: str) -> str | None:
        """Look an answer up."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                return None
            self._file.seek(place[0])
            return str(json.loads(self._file.read(place[1]))["answer"])

    def add(self, key: str, answer: str, **details: Any) -> None:
        """Keep an answer; `details` (JSON) lie beside it for the reader's eye."""
        line = json.dumps({"key": key, "answer": answer, **details}).encode() + b"\n"
        with self._lock:
            self._file.seek(0, os.SEEK_END)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._places[key] = (self._file.tell() - len(line), len(line))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()
