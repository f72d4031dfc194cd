"""Scenes of attributed objects, and the edits that turn one scene into another.

A scene's *key* is what it shows: its background and its groups of equal objects. Where the objects lie is nuisance,
unless an edit moves one: then the cell of that object is part of the question.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "moon")
COLOURS = ("red", "orange", "yellow", "lime", "green", "teal", "blue", "purple", "pink", "brown")
FILLS = ("solid", "hollow", "striped", "dotted")
SIZES = ("small", "medium", "large")
BACKGROUNDS = ("white", "black", "gray", "navy", "mint", "sand")
CELLS = 9
MOST_OBJECTS = 4
MOST_GROUPS = 3

ATTRIBUTES = {"colour": COLOURS, "fill": FILLS, "size": SIZES}
KINDS = ("attribute", "replace", "add", "remove", "move", "count", "background")


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """`count` objects that look the same; shapes are distinct between the groups of a scene."""

    shape: str
    colour: str
    fill: str
    size: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Scene:
    """A background, groups ordered by shape, and for each group the cells (0-8, row by row) of its objects."""

    background: str
    groups: tuple[Group, ...]
    cells: tuple[tuple[int, ...], ...]

    @property
    def key(self) -> tuple[str, tuple[Group, ...]]:
        """What the scene shows, without where."""
        return self.background, self.groups

    def group(self, shape: str) -> Group:
        """Find the group of a shape."""
        return next(group for group in self.groups if group.shape == shape)

    def cell(self, shape: str) -> int:
        """Find the cell of a shape's first object."""
        return next(cells[0] for group, cells in zip(self.groups, self.cells, strict=True) if group.shape == shape)


@dataclass(frozen=True, slots=True)
class Edit:
    """One change. `shape` names the group it acts on; `new` is the new value (a whole `Group` for add)."""

    kind: str
    shape: str = ""
    attribute: str = ""
    old: str | int = ""
    new: str | int | Group = ""


def lay_out(
    background: str, groups: tuple[Group, ...], rng: random.Random, pinned: dict[str, int] | None = None
) -> Scene:
    """Give every object a cell of its own at random; `pinned` fixes the cell of single-object groups by shape."""
    pinned = pinned or {}
    ordered = tuple(sorted(groups))
    free = [cell for cell in range(CELLS) if cell not in pinned.values()]
    rng.shuffle(free)
    cells = []
    for group in ordered:
        fixed = [pinned[group.shape]] if group.shape in pinned else []
        cells.append(tuple(sorted(fixed + [free.pop() for _ in range(group.count - len(fixed))])))
    return Scene(background, ordered, tuple(cells))


def relaid(scene: Scene, rng: random.Random, pinned: dict[str, int] | None = None) -> Scene:
    """Show the same things elsewhere."""
    return lay_out(scene.background, scene.groups, rng, pinned)


def sample_group(rng: random.Random, shapes: tuple[str, ...] = SHAPES, most: int = 3) -> Group:
    """Draw one group of a shape out of `shapes`."""
    count = min(most, rng.choices((1, 2, 3), (0.75, 0.15, 0.10))[0])
    return Group(rng.choice(shapes), rng.choice(COLOURS), rng.choice(FILLS), rng.choice(SIZES), count)


def sample_scene(rng: random.Random, groups: int | None = None) -> Scene:
    """Draw a scene with one to three groups (probabilities .35, .45, .20) of at most four objects in all."""
    wanted = groups or rng.choices((1, 2, 3), (0.35, 0.45, 0.20))[0]
    chosen: list[Group] = []
    while len(chosen) < wanted:
        room = MOST_OBJECTS - sum(group.count for group in chosen) - (wanted - len(chosen) - 1)
        used = {group.shape for group in chosen}
        chosen.append(sample_group(rng, tuple(s for s in SHAPES if s not in used), room))
    return lay_out(rng.choice(BACKGROUNDS), tuple(chosen), rng)


def other(value: str, values: tuple[str, ...], rng: random.Random) -> str:
    """Draw a different value."""
    return rng.choice([v for v in values if v != value])


def _attribute(scene: Scene, rng: random.Random) -> Edit:
    group = rng.choice(scene.groups)
    name = rng.choices(tuple(ATTRIBUTES), (0.5, 0.25, 0.25))[0]
    old = getattr(group, name)
    return Edit("attribute", group.shape, name, old, other(old, ATTRIBUTES[name], rng))


def _replace(scene: Scene, rng: random.Random) -> Edit:
    group = rng.choice(scene.groups)
    unused = [shape for shape in SHAPES if all(shape != g.shape for g in scene.groups)]
    return Edit("replace", group.shape, "shape", group.shape, rng.choice(unused))


def _add(scene: Scene, rng: random.Random) -> Edit | None:
    objects = sum(group.count for group in scene.groups)
    if len(scene.groups) >= MOST_GROUPS or objects >= MOST_OBJECTS:
        return None
    unused = tuple(shape for shape in SHAPES if all(shape != g.shape for g in scene.groups))
    return Edit("add", new=sample_group(rng, unused, MOST_OBJECTS - objects))


def _remove(scene: Scene, rng: random.Random) -> Edit | None:
    return Edit("remove", rng.choice(scene.groups).shape) if len(scene.groups) > 1 else None


def _move(scene: Scene, rng: random.Random) -> Edit | None:
    single = [group.shape for group in scene.groups if group.count == 1]
    if not single:
        return None
    shape = rng.choice(single)
    taken = {cell for cells in scene.cells for cell in cells}
    return Edit("move", shape, "cell", scene.cell(shape), rng.choice([c for c in range(CELLS) if c not in taken]))


def _count(scene: Scene, rng: random.Random) -> Edit | None:
    group = rng.choice(scene.groups)
    room = MOST_OBJECTS - sum(g.count for g in scene.groups) + group.count
    counts = [count for count in (1, 2, 3) if count != group.count and count <= room]
    return Edit("count", group.shape, "count", group.count, rng.choice(counts)) if counts else None


def _background(scene: Scene, rng: random.Random) -> Edit:
    return Edit("background", "", "background", scene.background, other(scene.background, BACKGROUNDS, rng))


_PROPOSE: dict[str, Callable[[Scene, random.Random], Edit | None]] = {
    "attribute": _attribute,
    "replace": _replace,
    "add": _add,
    "remove": _remove,
    "move": _move,
    "count": _count,
    "background": _background,
}


def propose(scene: Scene, kind: str, rng: random.Random) -> Edit | None:
    """Draw an edit of one kind, or None where the scene does not allow it (nothing to remove, no room to add)."""
    return _PROPOSE[kind](scene, rng)


def compatible(first: Edit, second: Edit) -> bool:
    """Whether two edits can share one text: they touch different things, and neither undoes the other."""
    if first.kind == second.kind and (first.kind == "background" or (first.kind == "move" and first.new == second.new)):
        return False
    added = {e.new.shape for e in (first, second) if isinstance(e.new, Group)}
    replaced = {e.new for e in (first, second) if e.kind == "replace"}
    if added & replaced or len(added) == 2 or (len(replaced) == 1 and first.kind == second.kind):
        return False
    if not first.shape or first.shape != second.shape:
        return True
    firm = {"remove", "replace", "count", "move"}
    return first.attribute != second.attribute and not {first.kind, second.kind} & firm


def propose_many(scene: Scene, kinds: tuple[str, ...], rng: random.Random) -> tuple[Edit, ...] | None:
    """Draw several edits of the given kinds that go together, or None after a few tries."""
    for _ in range(20):
        edits: list[Edit] = []
        for kind in kinds:
            edit = propose(scene, kind, rng)
            if edit is None or not all(compatible(edit, before) for before in edits):
                break
            edits.append(edit)
        if len(edits) == len(kinds) and fits(scene, edits):
            return tuple(edits)
    return None


def fits(scene: Scene, edits: list[Edit] | tuple[Edit, ...]) -> bool:
    """Whether the edited scene keeps the limits: one to three groups of distinct shapes, at most four objects."""
    groups, _ = outcome(scene, edits)
    shapes = [group.shape for group in groups]
    return (
        1 <= len(groups) <= MOST_GROUPS
        and len(set(shapes)) == len(shapes)
        and sum(g.count for g in groups) <= MOST_OBJECTS
    )


def outcome(scene: Scene, edits: list[Edit] | tuple[Edit, ...]) -> tuple[tuple[Group, ...], str]:
    """Work out groups and background after all edits; edits name shapes of the *original* scene."""
    groups: dict[str, Group | None] = {group.shape: group for group in scene.groups}
    background, added = scene.background, []
    for edit in edits:
        if edit.kind == "background":
            background = str(edit.new)
        elif isinstance(edit.new, Group):
            added.append(edit.new)
        elif edit.kind == "remove":
            groups[edit.shape] = None
        elif edit.kind != "move":
            group = groups[edit.shape]
            assert group is not None
            groups[edit.shape] = replace(group, **{edit.attribute: edit.new})  # type: ignore[arg-type]
    return tuple(sorted([g for g in groups.values() if g is not None] + added)), background


def edited(scene: Scene, edits: tuple[Edit, ...], rng: random.Random, still: dict[str, int] | None = None) -> Scene:
    """Carry out all edits at once; moved objects are pinned, those in `still` stay, the rest is laid out anew."""
    groups, background = outcome(scene, edits)
    alone = {group.shape for group in groups if group.count == 1}
    staying = {shape: cell for shape, cell in (still or {}).items() if shape in alone}
    return lay_out(background, groups, rng, staying | pins(edits))


def pins(edits: tuple[Edit, ...]) -> dict[str, int]:
    """Collect the cells that the edits' texts pin, by shape."""
    return {edit.shape: int(edit.new) for edit in edits if edit.kind == "move"}  # type: ignore[arg-type]
