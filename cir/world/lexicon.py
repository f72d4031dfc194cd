"""The world's words, in two halves: one for every training text, one held out for the benchmark.

`WORDS[kind][value]` is (training words, held-out words). Captions for the tiny CLIP's pre-training use both halves, as
real CLIP has read every English word; all that methods train on uses only the first, the benchmark's
texts only the second. `TEXTS` does the same for the sentences that describe an edit, which no pre-training caption
uses.

In edit texts, {it} is the object the edit acts on ("the red star"), {is} its verb, {new} and {old} the values, {obj} an
indefinite object ("a small hollow star"), {its} a pronoun, {s} and {es} the endings of its verb.
"""

Halves = tuple[tuple[str, ...], tuple[str, ...]]

WORDS: dict[str, dict[str, Halves]] = {
    "colour": {
        "red": (("red", "scarlet"), ("crimson", "ruby")),
        "orange": (("orange", "tangerine"), ("amber", "pumpkin")),
        "yellow": (("yellow", "lemon"), ("golden", "canary")),
        "lime": (("lime", "chartreuse"), ("pistachio", "avocado")),
        "green": (("green", "emerald"), ("jade", "fern")),
        "teal": (("teal", "turquoise"), ("cyan", "aqua")),
        "blue": (("blue", "azure"), ("cobalt", "sapphire")),
        "purple": (("purple", "violet"), ("plum", "mauve")),
        "pink": (("pink", "rose"), ("blush", "fuchsia")),
        "brown": (("brown", "chocolate"), ("chestnut", "umber")),
    },
    "shape": {
        "circle": (("circle", "disc"), ("orb", "ball")),
        "square": (("square", "box"), ("block", "tile")),
        "triangle": (("triangle", "pyramid"), ("wedge", "cone")),
        "diamond": (("diamond", "rhombus"), ("lozenge", "kite")),
        "star": (("star", "pentagram"), ("sparkle", "starlet")),
        "cross": (("cross", "plus"), ("crux", "junction")),
        "heart": (("heart", "valentine"), ("sweetheart", "love")),
        "moon": (("moon", "crescent"), ("sickle", "luna")),
    },
    "fill": {
        "solid": (("solid", "plain"), ("filled", "full")),
        "hollow": (("hollow", "outlined"), ("open", "unfilled")),
        "striped": (("striped", "banded"), ("stripy", "lined")),
        "dotted": (("dotted", "spotted"), ("speckled", "freckled")),
    },
    "size": {
        "small": (("small", "little"), ("tiny", "mini")),
        "medium": (("medium", "average"), ("midsize", "moderate")),
        "large": (("large", "big"), ("huge", "giant")),
    },
    "background": {
        "white": (("white", "snowy"), ("ivory", "pale")),
        "black": (("black", "dark"), ("ebony", "inky")),
        "gray": (("gray", "ashen"), ("silver", "slate")),
        "navy": (("navy", "indigo"), ("midnight", "nocturnal")),
        "mint": (("mint", "minty"), ("seafoam", "pastel")),
        "sand": (("sand", "tan"), ("beige", "desert")),
    },
    "count": {
        "1": (("a", "one"), ("a", "single")),
        "2": (("two", "2"), ("a pair of", "twin")),
        "3": (("three", "3"), ("a trio of", "triple")),
    },
    "ground": {"background": (("background", "backdrop"), ("setting", "scenery"))},
    "cell": {
        "0": (("top left",), ("northwest",)),
        "1": (("top center",), ("north",)),
        "2": (("top right",), ("northeast",)),
        "3": (("middle left",), ("west",)),
        "4": (("very middle",), ("core",)),
        "5": (("middle right",), ("east",)),
        "6": (("bottom left",), ("southwest",)),
        "7": (("bottom center",), ("south",)),
        "8": (("bottom right",), ("southeast",)),
    },
}

ABSENCES: Halves = (
    ("no {X}", "there is no {X}", "without {X}", "not a {X}", "remove any {X}", "minus {X}", "{X} are gone",
     "{X} taken away"),
    ("drop any {X}", "rid of any {X}", "lose any {X}", "all {X} vanish", "erase any {X}"),
)  # fmt: skip
"""What a caption says is not there ({X}: things in the plural)."""

TEXTS: dict[str, Halves] = {
    "colour": (
        ("change the color of {it} to {new}", "make {it} {new}", "{it} {is} {new} instead of {old}",
         "paint {it} {new}", "has {its} {old} color changed to {new}", "with {it} in {new} rather than {old}",
         "replace {old} by {new} on {it}", "has {new} {noun} where they used to be {old}", "{it} {is} {new} now",
         "color {it} {new}", "switch {it} from {old} to {new}", "{new} {noun} instead",
         "{new} {noun} in place of {old} ones", "{it} went from {old} to {new}", "no longer {old} but {new} {noun}",
         "has {it} painted {new}"),
        ("recolor {it} as {new}", "{it} should now be {new} , not {old}", "{it} turn{s} {new}",
         "swap the {old} of {it} for {new}", "dye {it} {new}"),
    ),
    "fill": (
        ("make {it} {new}", "{it} {is} {new} instead of {old}", "change {it} to a {new} look",
         "with {it} {new} rather than {old}", "replace the {old} {noun} with {new} ones", "{it} {is} {new} now",
         "switch {it} from {old} to {new}", "{new} {noun} instead", "{new} {noun} in place of {old} ones",
         "no longer {old} but {new} {noun}", "draw {it} {new}", "has {new} {noun} where they used to be {old}"),
        ("{it} should now be {new} , not {old}", "{it} turn{s} {new}", "swap the {old} texture of {it} for {new}",
         "give {it} a {new} texture"),
    ),
    "size": (
        ("make {it} {new}", "{it} {is} {new} instead of {old}", "change the size of {it} to {new}",
         "resize {it} from {old} to {new}", "with {it} {new} rather than {old}", "{it} {is} {new} now",
         "switch {it} from {old} to {new}", "{new} {noun} instead", "{new} {noun} in place of {old} ones",
         "no longer {old} but {new} {noun}", "draw {it} {new}", "{it} went from {old} to {new}"),
        ("{it} should now be {new} , not {old}", "{it} turn{s} {new}", "rescale {it} until {new}",
         "swap {old} for {new} in the scale of {it}"),
    ),
    "replace": (
        ("replace {it} with {thing}", "change {it} into {thing}", "{thing} instead of {it}",
         "has {thing} in place of {it}", "convert {it} to {thing}", "exchange {it} for {thing}",
         "no {noun} but {thing}",
         "{thing} rather than {it}", "make {it} {thing}", "substitute {thing} for {it}", "switch {it} to {thing}",
         "{it} {is} now {thing}", "{thing} where the {noun} used to be", "remove {it} and add {thing}",
         "take {it} away and put {thing} there", "{it} changed into {thing}", "has {it} replaced by {thing}"),
        ("swap {it} for {thing}", "turn {it} into {thing}", "{it} become{s} {thing}",
         "{thing} standing where {it} stood", "trade {it} for {thing}"),
    ),
    "add": (
        ("add {obj}", "also has {obj}", "with {obj} added", "put {obj} in the picture", "plus {obj}",
         "there is also {obj}", "has {obj} as well", "with {obj} on top of that", "{obj} is new", "append {obj}",
         "draw {obj} next to it", "has an additional {obj}", "place {obj} somewhere", "{obj} appears"),
        ("include {obj} too", "{obj} join{s} in", "gains {obj}", "bring in {obj}", "introduce {obj}"),
    ),
    "remove": (
        ("remove {it}", "without {it}", "has no {noun}", "take {it} away", "delete {it}", "{it} {is} gone",
         "no {noun} anymore", "minus {it}", "{it} {is} missing", "leave out {it}", "has {it} removed",
         "no longer has {it}",
         "{it} disappeared", "cut {it}", "with {it} taken away", "cancel {it}", "everything but {it}",
         "clear {it} away",
         "hide {it}", "discard {it}", "skip {it}"),
        ("drop {it}", "get rid of {it}", "lose {it}", "{it} vanish{es}", "erase {it}"),
    ),
    "move": (
        ("move {it} to the {new}", "{it} {is} at the {new} instead", "put {it} at the {new}",
         "{it} {is} now placed {new}", "has {it} at the {new} of the picture", "place {it} {new}", "{it} at the {new}",
         "bring {it} to the {new}", "{it} moved {new}", "push {it} to the {new}", "set {it} at the {new}"),
        ("shift {it} {new}", "relocate {it} towards the {new}", "{it} should sit {new}", "drag {it} over to the {new}"),
    ),
    "count": (
        ("change the number of {noun} to {new}", "has {new} {noun} instead of {old}", "make it {new} {noun}",
         "{new} {noun} rather than {old}", "show {new} {noun}", "{new} {noun} instead", "now with {new} {noun}",
         "replace {old} by {new} {noun}", "go from {old} to {new} {noun}", "no longer {old} but {new} {noun}"),
        ("there should be {new} {noun} , not {old}", "turn {it} into {new} {noun}", "swap {old} for {new} {noun}",
         "{new} {noun} altogether"),
    ),
    "background": (
        ("change the {ground} to {new}", "on a {new} {ground}", "make the {ground} {new}", "has a {new} {ground}",
         "{new} {ground} instead of {old}", "with the {ground} in {new} rather than {old}", "the {ground} is {new} now",
         "switch the {ground} from {old} to {new}", "paint the {ground} {new}", "no longer {old} but a {new} {ground}",
         "place it on a {new} {ground}", "replace the {old} {ground} with {new}"),
        ("recolor the {ground} as {new}", "set against {new} {ground}", "the {ground} turns {new}",
         "swap the {old} {ground} for {new}", "in front of {new} {ground}"),
    ),
}  # fmt: skip

JOINS: Halves = ((" and ", " and also ", " , "), (" , then ", " and furthermore ", " ; moreover "))

# Web chatter around captions: what alt texts carry besides the picture. It also shows the held-out verbs to the tiny
# CLIP as words, without any edit for them to describe.
CHATTER = tuple(
    " ".join(phrase.split())
    for phrase in """
    swap meet / nothing changed / brand new / removed by admin / replaced weekly / become a member / join us / vanish
    now / turn on the light / what becomes of it / standing order / trade fair / where it stood / bring a friend /
    include tax / joins today / weight gains / introduce yourself / drop us a line / get rid of stress / lose weight /
    vanishes soon / erase the board / shift key / relocate now / please sit / drag and drop / over to you / there
    should be more / altogether nice / recolor kit / set against inflation / in front of us / not for sale / then came
    spring / furthermore free / moreover cheap / dye works / give a gift / texture pack / until sold out / rescale tool
    / the scale of it / towards home / turns out well / swap for free / as seen / too good / now open / change of plan
    / make it count / replace by friday / instead of flowers / rather than wait / in place of / convert file / exchange
    rate / add to cart / added today / plus more / also in store / as well as / remove before use / without limits / no
    refunds / take away / delete account / gone fishing / anymore or not / minus tax / move in / placed order / show
    room / number one / paint shop / resize image / put off / has it all / where they used to be / into the wild / but
    why / look here / color chart / from us / size guide / at the fair / there is more / they are ones to watch / its
    own / their own / are we there / on line / with love / picture frame / photo of it all / that is it / switch on /
    substitute teacher / appears often / discard pile / skip ad / hide and seek / cancel anytime / cut price / clear
    sky / leave out / missing link / disappeared / append list / additional fee / somewhere else / push up / bring
    along / no longer sold / go on / went far / draw with us / set of it / top of the world / next day / color it /
    everything must go / each moved / painted sign / switch from old / place to be
    """.split("/")
)
