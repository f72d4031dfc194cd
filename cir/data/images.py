"""Opening pixels: every file is accounted for before a run starts, and a bad one is named, never skipped."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from cir.data.annotations import inside
from cir.data.reduce import without
from cir.data.views import seen
from cir.errors import InputError
from cir.schema import Benchmark, View

LISTED = 10
"""How many missing or corrupt files a message names."""


def check(
    benchmark: Benchmark,
    allow_missing: bool = False,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Benchmark:
    """Look for every image of the benchmark and read its header; nothing is decoded.

    Missing and unreadable files are one InputError that names the first ten and the total. With `allow_missing` they
    leave the gallery, and the queries that need them leave too: the benchmark that comes back is stamped. `progress`
    wraps the list of image ids.
    """
    bad: dict[str, str] = {}
    for name in progress(list(benchmark.paths)):
        trouble = _trouble(benchmark.root, benchmark.paths[name])
        if trouble:
            bad[name] = f"{name} ({benchmark.paths[name]}: {trouble})"
    if not bad:
        return benchmark
    if allow_missing:
        return without(benchmark, bad, "missing or corrupt")
    more = f" and {len(bad) - LISTED:,} more" if len(bad) > LISTED else ""
    raise InputError(
        f"{benchmark.name}: {len(bad):,} of {len(benchmark.paths):,} images are missing or corrupt under "
        f"{benchmark.root}: {', '.join(list(bad.values())[:LISTED])}{more}; complete the folder, or go on with "
        "data.allow_missing=true"
    )


def open_image(root: Path, path: str, name: str = "") -> Image.Image:
    """Decode one image in full, in its own mode: converting is up to the preprocessing.

    `path` is relative to `root` and may not leave it; links inside the folder may point anywhere. Raises InputError
    with the image's id and file if it is missing, truncated or no image.
    """
    file = root / inside(path, f"image {name!r}")
    with _as_input_error(f"image {name or path!r}: {file}"), Image.open(file) as image:
        image.load()
        return image


class ImageFiles:
    """The images of a benchmark, or of any folder, opened by id."""

    def __init__(self, root: Path, paths: Mapping[str, str], views: Mapping[str, View] | None = None) -> None:
        self.root, self.paths, self.views = root, paths, views or {}

    @classmethod
    def of(cls, benchmark: Benchmark) -> "ImageFiles":
        """Take a benchmark's images."""
        return cls(benchmark.root, benchmark.paths, benchmark.views)

    def __len__(self) -> int:
        """Count the images."""
        return len(self.paths)

    def __iter__(self) -> Iterator[str]:
        """Go through the ids."""
        return iter(self.paths)

    def file(self, name: str) -> Path:
        """Say where an image lies; InputError for an unknown id."""
        if name not in self.paths:
            raise InputError(f"image {name!r}: unknown; {self.root} has {len(self.paths):,} images under other ids")
        return self.root / inside(self.paths[name], f"image {name!r}")

    def open(self, name: str, size: tuple[int, int] = (224, 224)) -> Image.Image:
        """Decode one image in full, in its own mode; `size` is what a view is made for that has none of its own."""
        self.file(name)
        image = open_image(self.root, self.paths[name], name)
        return seen(image, self.views[name], size) if name in self.views else image


def _trouble(root: Path, path: str) -> str:
    """Say in a few words why a file is no image, empty if it is one; only the header is read."""
    file = root / inside(path, "image")
    if not file.is_file():
        return "missing"
    try:
        with _as_input_error(""), Image.open(file):
            return ""
    except InputError as error:
        return str(error).removeprefix(": ")


@contextmanager
def _as_input_error(what: str) -> Iterator[None]:
    """Turn whatever Pillow says about a bad file into one line; its warnings about odd metadata are not ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except FileNotFoundError:
        raise InputError(f"{what}: missing; expected an image file there") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{what}: not an image, or an unknown format") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{what}: corrupt ({error})") from None
