"""How many queries, images and targets the published annotation files hold, counted from the files.

`datasets/<name>/counts.json` shows the same numbers to people; a test keeps both equal. The copy in code is what an
installed package checks against. `targets` sums over queries (0: hidden labels), `union` is the number of images
that are a reference or a target.
"""

Counts = dict[str, int]
"""`queries`, `gallery`, and where known `targets` and `union`."""

PUBLISHED: dict[str, Counts] = {
    "fashioniq/dress/val": {"queries": 2017, "gallery": 3817, "targets": 2017, "union": 2628},
    "fashioniq/shirt/val": {"queries": 2038, "gallery": 6346, "targets": 2038, "union": 3089},
    "fashioniq/toptee/val": {"queries": 1961, "gallery": 5373, "targets": 1961, "union": 2902},
    "fashioniq/dress/test": {"queries": 2024, "gallery": 3818, "targets": 0},
    "fashioniq/shirt/test": {"queries": 2038, "gallery": 6346, "targets": 0},
    "fashioniq/toptee/test": {"queries": 2056, "gallery": 5374, "targets": 0},
    "cirr/val": {"queries": 4181, "gallery": 2297, "targets": 4181},
    "cirr/test1": {"queries": 4148, "gallery": 2315, "targets": 0},
    "circo/val": {"queries": 220, "gallery": 123403, "targets": 916},
    "circo/test": {"queries": 800, "gallery": 123403, "targets": 0},
}
