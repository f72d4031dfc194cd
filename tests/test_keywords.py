"""Key words of captions of the world's kind and of the web's kind."""

import importlib.util

import pytest

from cir.errors import InputError
from cir.keywords import tagger

CASES = {
    "two small red striped circles and a blue star on a navy background": (
        "small red striped circles|a blue star|a navy background"
    ),
    "a large green square left of a tiny yellow triangle": "a large green square|a tiny yellow triangle",
    "three dotted purple hearts above a solid orange ring": "dotted purple hearts|a solid orange ring",
    "there are two hexagons, one big and one small": "hexagons|big|small",
    "a picture showing a spotted pink diamond under a cross": "a picture|a spotted pink diamond|a cross",
    "a man in a black suit walks down the street at night": "a man|a black suit|the street|night",
    "a dog that is running through the tall grass": "a dog|the tall grass",
    "a woman wearing a red dress stands near the window": "a woman|a red dress|the window",
    "people walking on the beach at sunset": "people|the beach|sunset",
    "actor attends the premiere of his new film": "actor|the premiere|new film",
    "the parked cars along the road": "the parked cars|the road",
    "a group of people sitting around a wooden table": "a group|people|a wooden table",
    "portrait of a beautiful young woman with curly hair": "portrait|a beautiful young woman|curly hair",
    "a cat sleeping on the couch": "a cat|the couch",
    "the building is covered in snow": "the building|snow",
    "football player celebrates scoring his first goal": "football player|first goal",
    "the sun shines brightly over the old city": "the sun|the old city",
    "young boy playing with a toy train": "young boy|a toy train",
    "she holds a bouquet of white flowers": "a bouquet|white flowers",
    "a close-up of a bride's wedding ring": "a close-up|a bride|wedding ring",
    "he has a of it": "a",
    "an abandoned house in the woods": "an abandoned house|the woods",
    "a bowl filled with fresh fruit": "a bowl|fresh fruit",
    "the team won the championship game": "the team|the championship game",
    "vintage car parked in front of a house": "vintage car|front|a house",
    "a cartoon character holding a sign": "a cartoon character|a sign",
    "a walk in the park": "a walk|the park",
    "dogs play in the snow": "dogs|the snow",
    "digital art, trending on artstation, highly detailed": "digital art|artstation",
    "the red car stops": "the red car",
    "a young girl looks at the camera": "a young girl|the camera",
    "they don't smile": "",
    "it is 25 of them": "",
    "": "",
}


@pytest.mark.parametrize("caption", CASES)
def test_the_builtin_tagger_finds_what_a_reader_would(caption):
    assert "|".join(tagger("builtin").chunks(caption)) == CASES[caption]


def test_chunks_are_found_verbatim_in_plain_captions():
    builtin = tagger("builtin")
    assert all(chunk in caption for caption in CASES for chunk in builtin.chunks(caption))


def test_an_unknown_tagger_is_an_error():
    with pytest.raises(InputError, match="did you mean 'builtin'"):
        tagger("buildin")


@pytest.mark.skipif(
    importlib.util.find_spec("spacy") is not None,
    reason="says what is missing where spaCy is not installed; here it is",
)
def test_spacy_says_how_to_install_it_where_it_is_absent():
    with pytest.raises(InputError, match=r"pip install 'cir\[spacy\]'"):
        tagger("spacy")


def test_spacy_agrees_on_a_plain_caption_where_it_is_installed():
    pytest.importorskip("spacy")
    assert tagger("spacy").chunks("a woman wearing a red dress") == ["a woman", "a red dress"]
