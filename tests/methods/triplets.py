"""Triplets as `cir.methods.base.ImageTriplets` asks for them, without files: noise through a real backbone."""

import numpy as np
import torch

from cir.schema import Query

TEXTS = (
    ("is red and has longer sleeves",),
    ("two dogs on grass",),
    ("Is Blue.", "has a hood"),
    ("the same shirt, with a small red circle",),
    ("person holding umbrella", "in the rain"),
    ("more similar to a cat",),
)


class NoiseTriplets:
    """Coarse random pictures, `texts` over them; picture i + 1 is the target of i, so most are both."""

    def __init__(self, backbone, texts=TEXTS, seed=0, side=32):
        draw = torch.Generator().manual_seed(seed)
        self.count = len(texts) + 1
        coarse = torch.randn(self.count, 3, 4, 4, generator=draw)
        self.images = torch.nn.functional.interpolate(coarse, size=(side, side))
        self.backbone, self.texts = backbone, texts
        self.reference = np.arange(len(texts), dtype=np.int64)
        self.target = self.reference + 1
        self.fingerprint = f"noise-{seed}-{len(texts)}"
        self.bad = ()

    def __len__(self):
        return len(self.texts)

    def query(self, row):
        return Query(str(row), f"image{self.reference[row]}", self.texts[row], (f"image{self.target[row]}",))

    def features(self, images):
        return self.backbone.encode_images(self.images[list(images)])

    def patches(self, images):
        return self.backbone.encode_patches(self.images[list(images)])

    def pixels(self, images):
        return self.images[list(images)]
