import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cir.backbones.tokens import PieceTokenizer, blip_caption, load_tokenizer
from cir.prompts import Template, tokenize

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def official(tiny_clip_folder):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(tiny_clip_folder)


def test_specials_are_read_off_the_tokenizer(tiny_backbone, official):
    tokenizer = tiny_backbone.tokenizer
    assert tokenizer.start == (official.bos_token_id,) and tokenizer.end == official.eos_token_id
    assert tokenizer.pad == official.pad_token_id
    assert tokenizer.slot == official.convert_tokens_to_ids("$</w>")
    assert tokenizer.context == 77 and tokenizer.fixed_length is False


@given(st.text(max_size=40))
def test_property_pieces_equal_hugging_face_without_specials(tiny_backbone, official, text):
    assert tiny_backbone.tokenizer.pieces(text) == official(text, add_special_tokens=False)["input_ids"]


@given(st.text(max_size=40), st.text(max_size=40))
def test_property_pieces_split_at_a_blank_equal_the_whole(tiny_backbone, left, right):
    """But for marks that combine with the character before them, which no one writes after a blank."""
    tokenizer = tiny_backbone.tokenizer
    assert tokenizer.pieces(left) + tokenizer.pieces(" " + right) == tokenizer.pieces(left + " " + right)


def test_real_captions_split_at_every_blank_equal_the_whole(tiny_backbone):
    path = DATA / "CIRR/cirr/captions/cap.rc2.val.json"
    if not path.exists():
        pytest.skip("needs CIRR's annotation files in ../shared/data")
    tokenizer = tiny_backbone.tokenizer
    for row in json.loads(path.read_text())[::20]:
        caption = row["caption"]
        split = [piece for word in caption.split(" ") for piece in tokenizer.pieces(word)]
        assert split == tokenizer.pieces(caption)


def test_a_rendered_prompt_equals_the_official_string_with_a_dollar(tiny_backbone, official):
    texts = ["is red and has shorter sleeves", "shows 2 dogs, not cats"]
    found = Template().render(tiny_backbone.tokenizer, [[text] for text in texts]).prompt
    for row, text in enumerate(texts):
        ids = official(f"a photo of $ that {text}")["input_ids"]
        assert found.ids[row, : found.ends[row] + 1].tolist() == ids
        assert found.slots[row].tolist() == [ids.index(tiny_backbone.tokenizer.slot)]


def test_decode_gives_the_text_back(tiny_backbone):
    tokenizer = tiny_backbone.tokenizer
    assert tokenizer.decode(tokenizer.pieces("A photo of  two dogs")) == "a photo of two dogs"


def test_long_text_is_not_cut_by_the_tokenizer(tiny_backbone):
    assert len(tiny_backbone.tokenizer.pieces("dogs " * 300)) >= 300


def test_gemma_style_tokenizers_keep_word_beginnings_and_get_lower_case():
    """SigLIP 2's: a word begins with a mark, so a piece behind a slot needs its blank; text is lower-cased."""
    from transformers import GemmaTokenizer

    letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz▁.$", 5)}
    specials = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
    official = GemmaTokenizer(vocab={**specials, **letters}, merges=[], add_bos_token=False, add_eos_token=True)
    tokenizer = PieceTokenizer(official, context=32, fixed_length=True)
    assert (tokenizer.start, tokenizer.end, tokenizer.pad, tokenizer.slot) == ((), 1, 0, letters["$"])
    prompt = tokenize(tokenizer, [["A photo of", " that is Red."]])
    whole = official("a photo of$ that is red.")["input_ids"]
    assert prompt.ids[0].tolist() == whole + [0] * (32 - len(whole))
    assert prompt.ids[0, prompt.slots[0, 0]] == letters["$"]


def test_blip_captions_lose_ten_marks_and_keep_all_others():
    from string import punctuation

    gone = {mark for mark in punctuation if blip_caption(f"a{mark}b") == "a b"}
    assert gone == set('.!"()*#:;~')
    assert all(blip_caption(f"a{mark}b") == f"a{mark}b" for mark in set(punctuation) - gone)
    assert blip_caption("  (The)\tDog's \n\n name?\n") == "the dog's name?"


def test_cleaning_is_part_of_the_tokenizers_fingerprint(tiny_clip_folder):
    plain, again = (load_tokenizer(tiny_clip_folder, 77, False) for _ in range(2))
    cleaned = load_tokenizer(tiny_clip_folder, 77, False, clean=blip_caption)
    assert plain.fingerprint == again.fingerprint != cleaned.fingerprint
    assert cleaned.pieces("The dog (red).") == plain.pieces("the dog red") != plain.pieces("The dog (red).")
