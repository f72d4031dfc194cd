"""A backbone's widths without its weights: enough to build a method that maps features to pseudo-words."""

from typing import Any, NoReturn

import torch

from cir.errors import InputError


class _Absent:
    """Stands where a backbone's towers or tokenizer would be; whoever reaches for them is told."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __getattr__(self, name: str) -> NoReturn:
        raise InputError(f"{self._what}: only the backbone's widths are known here; load the backbone itself")


class BackboneShape:
    """The widths of a backbone, behind `cir.backbones.base.Backbone`; anything that needs weights raises `InputError`.

    `vision_width` is 0 where it is not known, `fingerprint` empty, which no real backbone's is.
    """

    def __init__(
        self,
        width: int,
        word_width: int,
        *,
        vision_width: int = 0,
        name: str = "",
        fingerprint: str = "",
        device: torch.device | str = "cpu",
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.width = width
        self.word_width = word_width
        self.vision_width = vision_width
        self.vectors = 1
        self.logit_scale = float("nan")
        self.preprocess_id = ""
        self.device = torch.device(device)
        self.dtype = torch.float32
        self.tokenizer: Any = _Absent("tokenizer")
        self.text: Any = _Absent("text tower")

    def preprocess(self, image: Any) -> NoReturn:
        """Refuse: the pixels are the backbone's."""
        self._refuse("preprocess")

    def encode_images(self, pixels: Any) -> NoReturn:
        """Refuse: there is no vision tower."""
        self._refuse("encode_images")

    def encode_patches(self, pixels: Any) -> NoReturn:
        """Refuse: there is no vision tower."""
        self._refuse("encode_patches")

    def encode_text(self, prompt: Any, pseudo: Any = None, owner: Any = None) -> NoReturn:
        """Refuse: there is no text tower."""
        self._refuse("encode_text")

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"{what}: only the backbone's widths are known here; load the backbone itself")
