"""Key words of a caption: runs of nouns, adjectives and determiners, which LinCIR masks (arXiv:2312.01998).

Two taggers behind one interface: `builtin` needs no download and decides by closed-class words, a list of common
verbs and suffixes; `spacy` is what the released code uses. They agree on plain captions, not on all.
"""

import re
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from cir.errors import InputError, nearest

# Words keep hyphens and contractions, not the possessive; captions hold straight and curly apostrophes.
WORD = re.compile(r"[^\W_]+(?:-[^\W_]+|['\u2019](?!s\b)[^\W_]+)*|['\u2019]s\b|[^\w\s]|_")

DETERMINERS = frozenset(
    "a an the this that these those some any each every no all both another either neither which what".split()
)
NUMBERS = frozenset(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion".split()
)
# What a verb follows, besides nouns.
SUBJECTS = frozenset(
    "i you he she it we they who to can could will would shall should may might must do does did don't doesn't didn't "
    "can't cannot couldn't won't wouldn't shouldn't".split()
)
# Everything else that is never part of a key word, whatever stands around it.
OTHERS = frozenset(
    # prepositions and particles
    "of in on at by for with from to into onto over under above below between behind beside besides near through "
    "across along around against among amongst amid during before after until since about as off out up down upon "
    "toward towards without within inside outside underneath beneath beyond past via per atop like unlike than "
    "alongside aboard throughout despite except "
    # conjunctions
    "and or but nor so yet if while when where because although though unless whether once whereas "
    # pronouns
    "me him her us them my your his its our their mine yours hers ours theirs myself yourself "
    "himself herself itself ourselves themselves whom whose someone somebody something anyone anybody anything "
    "everyone everybody everything nobody nothing there "
    # auxiliaries and copulas
    "is are was were be been being am isn't aren't wasn't weren't has have had having let's it's "
    # adverbs without the suffix
    "not n't very too also just only even still again away back here now then always never often sometimes soon "
    "together apart already almost quite rather instead ahead forward forwards backwards upwards downwards sideways "
    "well much more most less least how why maybe perhaps ever outdoors indoors overhead nearby today tonight "
    "tomorrow yesterday later else aside".split()
)
# Words the suffix rules below would take for verbs or adverbs.
NAMES = frozenset(
    "building buildings painting paintings wedding weddings morning mornings evening evenings ceiling ceilings king "
    "kings ring rings wing wings spring springs string strings thing things clothing drawing drawings railing railings "
    "lighting setting settings meeting meetings crossing crossings landing earring earrings stocking stockings legging "
    "leggings icing frosting pudding dumpling dumplings sibling siblings duckling ducklings gosling offspring viking "
    "interesting amazing exciting stunning charming missing bed beds shed sheds sled sleds red seed weed reed breed "
    "bleed speed feed hundred sacred naked wicked rugged jagged ragged aged crooked family families butterfly "
    "dragonfly fly belly jelly lily bully ally italy july supply assembly monopoly lovely friendly lonely elderly "
    "curly ugly silly holy woolly chilly hilly early daily likely lively only-child polka".split()
)
VERBS = (
    "walk sit stand run ride play look hold wear eat drink sleep jump fly drive carry lie lay show smile watch talk "
    "speak take make get go come give put hang lean climb swim surf ski skate perform sing dance pose attend arrive "
    "celebrate compete kick throw catch hit swing win lose race leave enter cross pass stop wait turn pull push cut "
    "cook prepare serve sell buy read write draw paint build grow feed pet chase graze rest float sail work rise fall "
    "shine cover surround fill contain include feature depict display appear seem become remain stay keep feel see "
    "hear listen point reach touch wave kiss hug shake smell taste bring send help use try begin start end close open "
    "follow lead meet visit enjoy share travel tie wrap pour mix sprinkle spread place set park land slide roll spin "
    "bite lick chew bark crawl kneel bend stretch lift drop raise gather join shop text type call answer laugh cry "
    "say tell ask think know want need love like hate live die kill fight shoot march pray"
).split()
IRREGULAR = frozenset(
    "sat stood ran rode held wore worn ate eaten drank drunk slept flew flown drove driven lay lain laid took taken "
    "made got gotten went gone came gave given hung swam swum sang sung won lost left caught threw thrown hit cut sold "
    "bought wrote written drew drawn built grew grown fed fell fallen shone shown became kept felt saw seen heard "
    "brought sent began begun led met spread set put shook shaken bit bitten knelt bent said told thought knew known "
    "died lying dying tying sitting".split()
)


@runtime_checkable
class Tagger(Protocol):
    """Finds key words."""

    def chunks(self, caption: str) -> list[str]:
        """List the maximal runs of nouns, proper nouns, adjectives and determiners, words joined by one blank."""
        ...


def tagger(name: str) -> Tagger:
    """Build a tagger by name; `InputError` for an unknown one, or for `spacy` where it is not installed."""
    if name not in TAGGERS:
        raise InputError(f"tagger {name!r} is unknown; {nearest(name, TAGGERS)}")
    return TAGGERS[name]()


def version(used: Tagger) -> str:
    """Name the model a tagger reads beside this file, whose change would change the key words; empty for none."""
    model = getattr(used, "model", None)
    return "" if model is None else f"spacy {model.meta['name']} {model.meta['version']} {model.meta['spacy_version']}"


def _runs(words: Iterable[tuple[str, bool]]) -> list[str]:
    """Join neighbouring words that are marked."""
    runs: list[list[str]] = [[]]
    for word, key in words:
        if key:
            runs[-1].append(word)
        elif runs[-1]:
            runs.append([])
    return [" ".join(run) for run in runs if run]


def _inflect(verb: str) -> set[str]:
    """List the third person and the past of a regular verb; the -ing form is found by its suffix."""
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return {verb, verb[:-1] + "ies", verb[:-1] + "ied"}
    if verb.endswith(("s", "x", "ch", "sh", "o")):
        return {verb, verb + "es", verb + "ed"}
    return {verb, verb + "s", verb + ("d" if verb.endswith("e") else "ed")}


class Builtin:
    """Tags by closed-class words, a verb list, suffixes, and the word before and after; no download.

    What is neither closed-class, number, adverb nor verb counts as noun; adjectives need no tag of their own,
    because both belong to key words.

    >>> Builtin().chunks("two small red striped circles and a blue star on a navy background")
    ['small red striped circles', 'a blue star', 'a navy background']
    """

    forms = frozenset().union(*map(_inflect, VERBS))

    def chunks(self, caption: str) -> list[str]:
        """List the runs of words tagged as noun or determiner."""
        words = WORD.findall(caption)
        tags: list[str] = []
        for index, word in enumerate(words):
            following = words[index + 1].lower() if index + 1 < len(words) else ""
            tags.append(self._tag(word.lower(), tags[-1] if tags else "", following))
        return _runs((word, tag in ("NOUN", "DET")) for word, tag in zip(words, tags, strict=True))

    def _tag(self, word: str, before: str, following: str) -> str:
        """Tag one lower-case word from its form, the tag before and the word behind it."""
        if word[0].isdigit() or word in NUMBERS:
            return "NUM"
        if word in SUBJECTS or (word == "that" and before in ("NOUN", "OTHER")):  # "a dog that runs"
            return "SUBJECT"
        if word in DETERMINERS:
            return "DET"
        if word in NAMES:
            return "NOUN"
        if not word[0].isalpha() or word in OTHERS or (word.endswith("ly") and len(word) > 4):
            return "OTHER"
        return "VERB" if self._verb(word, before, following) else "NOUN"

    def _verb(self, word: str, before: str, following: str) -> bool:
        """Decide whether a word tells what happens: verbs follow a noun, describing forms stand before one."""
        closed = not following[:1].isalpha() or following in DETERMINERS | OTHERS | NUMBERS
        if word in IRREGULAR or (len(word) > 4 and word.endswith(("ing", "ed"))):
            # "a running dog", "small striped circles"; but "a man wearing glasses", "dressed in", "is sleeping".
            describes = before in ("DET", "NUM", "") or (before == "NOUN" and word.endswith("ed"))
            return closed or not describes
        # "the man walks", "they play", "to run"; but "a walk", "two plays", "views of".
        return word in self.forms and before in ("NOUN", "SUBJECT") and not (word.endswith("s") and following == "of")


class Spacy:
    """Tags with spaCy's `en_core_web_sm`, as the released code does."""

    def __init__(self) -> None:
        try:
            import spacy

            self.model = spacy.load("en_core_web_sm", exclude=["ner", "lemmatizer", "parser"])
        except (ImportError, OSError) as error:
            raise InputError(
                "tagger spacy: needs spaCy and its model: pip install 'cir[spacy]' and python -m spacy download "
                f"en_core_web_sm; or use tagger builtin ({error})"
            ) from None

    def chunks(self, caption: str) -> list[str]:
        """List the runs of tokens whose part of speech is NOUN, PROPN, ADJ or DET."""
        wanted = {"NOUN", "PROPN", "ADJ", "DET"}
        return _runs((token.text, token.pos_ in wanted) for token in self.model(caption))


TAGGERS: dict[str, type[Tagger]] = {"builtin": Builtin, "spacy": Spacy}
