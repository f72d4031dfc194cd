"""What everything that is loaded by `cir.load` shares: where it lies, its settings, its backbone, and the Hub."""

import dataclasses
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import yaml
from PIL import Image
from torch import Tensor

from cir import config as configs
from cir import hub, prompts, runs
from cir.backbones.base import Backbone, ImageSide
from cir.backbones.weights import pick_device
from cir.config import RunConfig
from cir.data.images import open_image
from cir.errors import InputError, nearest
from cir.methods import checkpoint
from cir.prompts import Joiner, Template

logger = logging.getLogger(__name__)

Picture = str | Path | Image.Image
Loaded = TypeVar("Loaded", bound="Pretrained")


class Pretrained:
    """What an adapter and a table of tokens share: where they lie, their configuration, backbone and the Hub.

    `config` is the run's configuration: backbone, preprocessing, template, join. `described` is the checkpoint's
    own description.
    """

    def __init__(
        self,
        folder: Path,
        described: dict[str, Any],
        backbone: Backbone | str | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.folder = folder
        self.described = described
        self.config = _settings(folder, described)
        if isinstance(backbone, str):
            self.config.backbone.name, backbone = backbone, None
        if device is not None:
            self.config.backbone.device = str(device)
        self._backbone = backbone
        if backbone is not None:
            self._check(backbone)
        self.device = backbone.device if backbone is not None else pick_device(self.config.backbone.device)
        self._open()

    def _open(self) -> None:
        """Read what the folder holds."""

    @property
    def backbone(self) -> Backbone:
        """The frozen encoders, loaded on first use."""
        if self._backbone is None:
            if not self.config.backbone.name:
                raise InputError(f"{self.folder}: does not say its backbone; give one: cir.load(..., backbone=...)")
            loaded = runs.load_backbone(self.config)
            self._check(loaded)
            self._backbone = loaded
        return self._backbone

    def _check(self, backbone: Backbone) -> None:
        """Compare a backbone with the one the checkpoint belongs to, its preprocessing included."""
        checkpoint.check_backbone(self.described["backbone"], backbone, self.folder)
        wanted, found = self.config.backbone.preprocess, backbone.preprocess_id
        if not found.startswith((f"{wanted}:", f"{wanted}-")) and not (wanted == "clip" and found.startswith("squash")):
            logger.warning("%s was made for preprocessing %s, the backbone has %s", self.folder, wanted, found)

    def encode_images(
        self, images: Sequence[Picture], *, kind: Literal["features", "patches"] = "features", batch: int = 32
    ) -> Tensor:
        """Encode files or pictures with the recorded preprocessing: raw features "b d", or patch tokens "b p v".

        `features` are what `words` and `compose` read, and what a gallery is made of once normalised: "b t d" on a
        backbone with several vectors per image (BLIP-2). `patches` are what methods that read them `compose` from.
        """
        side = self._images()
        encode = side.encode_patches if kind == "patches" else side.encode_images
        found = []
        for start in range(0, len(images), batch):
            pixels = [side.preprocess(_opened(image)) for image in images[start : start + batch]]
            found.append(encode(torch.stack(pixels)))
        if not found:
            raise InputError("encode_images: no images given")
        vectors = torch.cat(found)
        return vectors[:, 0] if kind == "features" and side.vectors == 1 else vectors

    def _images(self) -> ImageSide:
        """Say who encodes pictures."""
        return self.backbone

    def _template(self, template: str | None) -> Template:
        return Template(template or self.config.prompt.template, self.config.prompt.overflow)  # type: ignore[arg-type]

    def _joiner(self, join: str | Joiner | None) -> Joiner:
        name = join or self.config.prompt.join
        if callable(name):
            return name
        if name not in prompts.JOINERS:
            raise InputError(f"join {name!r} is unknown; {nearest(name, prompts.JOINERS)}")
        return prompts.JOINERS[name]

    def save_pretrained(
        self, save_directory: str | Path, *, push_to_hub: bool = False, repo_id: str | None = None, **options: Any
    ) -> str | None:
        """Write the weights as they are now, both configurations and a model card; each file atomically.

        With `push_to_hub`, upload the folder as `repo_id` (default: the folder's name) with `push_to_hub`'s options
        and return the commit's address.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._save(folder)
        plain = {key: configs.resolved(self.config)[key] for key in ("name", "method", "backbone", "prompt")}
        for key in ("device", "cache"):  # of this machine, not of the checkpoint
            del plain["backbone"][key]
        _write(folder / runs.CONFIG, yaml.safe_dump(plain, sort_keys=False))
        _write(folder / hub.CARD, hub.card(self.described, self.config, repo_id or folder.name))
        return hub.upload(folder, repo_id or folder.name, **options) if push_to_hub else None

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload to the Hub in one commit and return its address.

        Options are those of the Hub's mixins: `commit_message`, `private`, `token`, `branch`, `create_pr`,
        `allow_patterns`, `ignore_patterns`, `delete_patterns`.
        """
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / repo_id.split("/")[-1]
            return str(self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, **options))

    @classmethod
    def from_pretrained(
        cls: type[Loaded],
        pretrained_model_name_or_path: str | Path,
        *,
        backbone: Backbone | str | None = None,
        device: str | torch.device | None = None,
        **download: Any,
    ) -> Loaded:
        """Load a folder or a Hub repository; `download` takes the Hub's own: `revision`, `token`, `cache_dir`,
        `force_download`, `local_files_only`.
        """
        folder = runs.find_checkpoint(hub.locate(pretrained_model_name_or_path, **download))
        return cls(folder, cls.describe(folder), backbone, device)

    @staticmethod
    def describe(folder: Path) -> dict[str, Any]:
        """Read the description of a checkpoint of this kind."""
        raise NotImplementedError

    def _save(self, folder: Path) -> None:
        raise NotImplementedError


def _settings(folder: Path, described: dict[str, Any]) -> RunConfig:
    """Read the configuration kept with a checkpoint; without one, the checkpoint's own word on its backbone."""
    kept = runs.config_file(folder)
    if kept is not None:
        return configs.load(kept)
    made = configs.load(None, [f"name={folder.name}", f"method.name={described.get('method', 'oti')}"])
    made.backbone = dataclasses.replace(made.backbone, name=described["backbone"]["name"])
    return made


def _opened(image: Picture) -> Image.Image:
    """Open a file, or take a picture as it is."""
    if isinstance(image, Image.Image):
        return image
    path = Path(image).expanduser()
    return open_image(path.parent, path.name, str(image))


def _write(path: Path, text: str) -> None:
    """Write a file atomically."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, path)
