"""Pictures of scenes: 64 x 64 RGB, drawn at twice the size with Pillow and averaged down.

Nuisance: jitter, size, rotation, colour, background colour, a linear light gradient, gain and pixel noise. All of it
is drawn from one seed per picture, so a picture is a function of (scene, seed).
"""

import math

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image, ImageDraw

from cir.world.scenes import Scene

SIDE = 64
PATCH = 8
_SCALE = 2
_CANVAS = SIDE * _SCALE

RGB = {
    "red": (212, 36, 44), "orange": (247, 140, 32), "yellow": (244, 222, 60), "lime": (160, 216, 72),
    "green": (32, 128, 52), "teal": (24, 166, 158), "blue": (40, 84, 224), "purple": (124, 56, 176),
    "pink": (242, 132, 188), "brown": (124, 76, 40),
}  # fmt: skip
BACKGROUND_RGB = {
    "white": (246, 246, 246), "black": (20, 20, 22), "gray": (128, 128, 132), "navy": (22, 28, 84),
    "mint": (176, 234, 208), "sand": (228, 200, 150),
}  # fmt: skip
RADIUS = {"small": 0.10, "medium": 0.14, "large": 0.185}  # of the picture's width


def _regular(points: int, inner: float = 1.0, turn: float = 0.0) -> np.ndarray:
    """Corners of a regular polygon, or of a star when `inner` < 1, on the unit circle."""
    steps = points * (2 if inner < 1 else 1)
    angle = np.arange(steps) * 2 * math.pi / steps - math.pi / 2 + turn
    radius = np.where(np.arange(steps) % 2 == 1, inner, 1.0) if inner < 1 else np.ones(steps)
    return np.stack([np.cos(angle) * radius, np.sin(angle) * radius], 1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y + 2], 1) / 16


def _moon() -> np.ndarray:
    outer = np.linspace(math.radians(50), math.radians(310), 30)
    tip = np.array([math.cos(outer[0]), math.sin(outer[0])])
    centre, radius = 0.55, math.hypot(tip[0] - 0.55, tip[1])
    start = math.atan2(tip[1], tip[0] - centre)
    inner = np.linspace(2 * math.pi - start, start, 30)
    arc = np.stack([centre + radius * np.cos(inner), radius * np.sin(inner)], 1)
    return np.concatenate([np.stack([np.cos(outer), np.sin(outer)], 1), arc]) + np.array([0.2, 0.0])


_CROSS = np.array(
    [(-.34, -1), (.34, -1), (.34, -.34), (1, -.34), (1, .34), (.34, .34), (.34, 1), (-.34, 1), (-.34, .34), (-1, .34),
     (-1, -.34), (-.34, -.34)]
)  # fmt: skip
OUTLINES = {
    "circle": _regular(40),
    "square": _regular(4, turn=math.pi / 4) * 1.15,
    "triangle": _regular(3) * 1.15 + np.array([0, 0.2]),
    "diamond": _regular(4) * np.array([0.72, 1.2]),
    "star": _regular(5, inner=0.45) * 1.15,
    "cross": _CROSS * 0.95,
    "heart": _heart(),
    "moon": _moon() * 1.05,
}


def _mask(outline: np.ndarray, fill: str, side: int) -> tuple[Image.Image, Image.Image | None]:
    """Draw an outline given in pixels: its silhouette, and the part of it in a second tone."""
    shape = Image.new("L", (side, side))
    draw = ImageDraw.Draw(shape)
    draw.polygon([tuple(p) for p in outline], fill=255)
    if fill == "hollow":
        centre = outline.mean(axis=0)
        draw.polygon([tuple(p) for p in centre + (outline - centre) * 0.62], fill=0)
    if fill not in ("striped", "dotted"):
        return shape, None
    tone = Image.new("L", (side, side))
    draw = ImageDraw.Draw(tone)
    if fill == "striped":
        for offset in range(-side, 2 * side, 10):
            draw.line([(offset, side), (offset + side, 0)], fill=255, width=4)
    else:
        for row, y in enumerate(range(2, side, 8)):
            for x in range(2 + 4 * (row % 2), side, 8):
                draw.ellipse([x, y, x + 3, y + 3], fill=255)
    return shape, Image.composite(tone, Image.new("L", (side, side)), shape)


def _second_tone(rgb: np.ndarray) -> tuple[int, ...]:
    """Choose a lighter tone for dark colours, a darker one for light colours."""
    toned = rgb * 0.3 + 255 * 0.7 if rgb @ (0.3, 0.59, 0.11) < 110 else rgb * 0.3
    return tuple(int(c) for c in toned)


def _place(canvas: Image.Image, where: tuple[int, int], group_rgb: np.ndarray, masks: tuple) -> None:
    shape, tone = masks
    canvas.paste(tuple(int(c) for c in group_rgb), where, shape)
    if tone is not None:
        canvas.paste(_second_tone(group_rgb), where, tone)


def _light(picture: Float32[np.ndarray, "64 64 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "64 64 3"]:
    """Put a gradient, a gain and pixel noise over the drawing."""
    ramp = np.linspace(-0.5, 0.5, SIDE, dtype=np.float32)
    slope = rng.uniform(-0.22, 0.22, 2)
    field = 1 + slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
    gain = rng.uniform(0.9, 1.1)
    noise = rng.standard_normal((SIDE, SIDE, 3), dtype=np.float32) * np.float32(rng.uniform(2, 8))
    return np.clip(picture * (field * gain)[..., None] + noise, 0, 255).astype(np.uint8)


def draw(scene: Scene, seed: int) -> tuple[UInt8[np.ndarray, "64 64 3"], Int64[np.ndarray, "8 8"]]:
    """Render a scene, and say for each 8 x 8 patch which group it shows: an index into `scene.groups`, or -1."""
    rng = np.random.default_rng(seed)
    ground = np.clip(np.array(BACKGROUND_RGB[scene.background]) + rng.normal(0, 6, 3), 0, 255)
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), tuple(int(c) for c in ground))
    cover = np.zeros((len(scene.groups) + 1, SIDE // PATCH, SIDE // PATCH))
    cover[0] = 0.25  # a patch belongs to a group that covers more than a quarter of it
    for index, (group, cells) in enumerate(zip(scene.groups, scene.cells, strict=True)):
        rgb = np.clip(np.array(RGB[group.colour]) + rng.normal(0, 9, 3), 0, 255)
        for cell in cells:
            radius = RADIUS[group.size] * _CANVAS * rng.uniform(0.92, 1.08)
            turn, jitter = rng.uniform(-0.3, 0.3), rng.uniform(-0.03, 0.03, 2) * _CANVAS
            centre = (np.array([cell % 3, cell // 3]) + 0.5) * _CANVAS / 3 + jitter
            centre = np.clip(centre, radius * 0.9, _CANVAS - radius * 0.9)
            rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
            half = math.ceil(radius * 1.35)
            corner = np.floor(centre - half).astype(int)
            outline = OUTLINES[group.shape] @ rotation * radius + (centre - corner)
            masks = _mask(outline, group.fill, 2 * half + 1)
            where = (int(corner[0]), int(corner[1]))
            _place(canvas, where, rgb, masks)
            shown = Image.new("L", (_CANVAS, _CANVAS))
            shown.paste(masks[0], where)
            grid = PATCH * _SCALE
            cover[index + 1] += np.asarray(shown.reduce(grid), dtype=np.float64) / 255
    picture = np.asarray(canvas.reduce(_SCALE), dtype=np.float32)
    return _light(picture, rng), cover.argmax(axis=0) - 1
