"""Images to learn from, as `cir.methods.base.Images` asks for them, without files: noise through the backbone."""

import pytest
import torch

from cir.backbones.base import one_vector

CAPTIONS = ("a red dress with longer sleeves", "two dogs on grass", "it is", "", "the photo of a cat on the blue sofa")


class NoiseImages:
    """Coarse random pictures with captions; notes what was asked for."""

    def __init__(self, backbone, captions=CAPTIONS, seed=0, side=32):
        draw = torch.Generator().manual_seed(seed)
        coarse = torch.randn(len(captions), 3, 4, 4, generator=draw)
        self.pixels = torch.nn.functional.interpolate(coarse, size=(side, side))
        self.backbone = backbone
        self.captions = captions
        self.fingerprint = f"noise-{seed}-{len(captions)}"
        self.asked = []

    def __len__(self):
        return len(self.captions)

    def text(self, row):
        return self.captions[row]

    def features(self, rows):
        self.asked.append("features")
        return one_vector(self.backbone.encode_images(self.pixels[list(rows)]))

    def augmented(self, rows, random):
        self.asked.append("augmented")
        moved = self.pixels[list(rows)] + 0.1 * random.normal("crop", *self.pixels.shape[1:])
        return one_vector(self.backbone.encode_images(moved))

    def patches(self, rows):
        self.asked.append("patches")
        return self.backbone.encode_patches(self.pixels[list(rows)])


@pytest.fixture(scope="session")
def make_images():
    """`NoiseImages`, for tests of methods that learn from images."""
    return NoiseImages
