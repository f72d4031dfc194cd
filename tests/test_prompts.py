import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cir.errors import InputError
from cir.prompts import JOINERS, Template, lay_out, tokenize


class Letters:
    """One id per character, blanks ignored; the slot shares its id with a typed `$`, as CLIP's does."""

    start = (1,)
    end = 200
    pad = 0
    slot = ord("$")
    context = 16
    fixed_length = False

    def pieces(self, text):
        return [ord(letter) for letter in text if letter != " "]


class WholeLetters(Letters):
    start = ()
    fixed_length = True


def codes(text):
    return [ord(letter) for letter in text]


def test_a_row_is_start_pieces_with_slots_between_and_end():
    prompt = tokenize(Letters(), [["ab", "c"], ["xyz"], ["", "", "q"]])
    assert prompt.ids.tolist() == [
        [1, *codes("ab$c"), 200],
        [1, *codes("xyz"), 200, 0],
        [1, *codes("$$q"), 200, 0],
    ]
    assert prompt.slots.tolist() == [[3, -1], [-1, -1], [1, 2]]
    assert prompt.ends.tolist() == [5, 4, 4]


def test_towers_that_see_their_padding_get_the_full_context():
    prompt = tokenize(WholeLetters(), [["a", "b"]])
    assert prompt.ids.tolist() == [[*codes("a$b"), 200, *[0] * 12]]
    assert prompt.slots.tolist() == [[1]] and prompt.ends.tolist() == [3]


def test_no_rows_and_no_slots_are_possible():
    assert tokenize(Letters(), []).ids.shape == (0, 1)
    assert tokenize(Letters(), [["ab"]]).slots.shape == (1, 0)


def test_trailing_blanks_go_leading_blanks_stay():
    seen = []

    class Listening(Letters):
        context = 99

        def pieces(self, text):
            seen.append(text)
            return super().pieces(text)

    Template("a photo of $ that {text}").render(Listening(), [["is"]])
    assert seen == ["a photo of", " that is"]


def test_a_string_is_not_a_row():
    with pytest.raises(TypeError, match="list of text pieces"):
        tokenize(Letters(), ["abc"])


def test_a_dollar_in_the_users_text_is_not_a_slot():
    prompt = Template("a$b{text}").render(Letters(), [["$2"]]).prompt
    assert prompt.ids.tolist() == [[1, *codes("a$b$2"), 200]]
    assert prompt.slots.tolist() == [[2]]


def test_fields_are_not_read_in_what_was_inserted():
    assert Template("{concept} $ {text}").fill("{concept}", "{text}") == ["{text} ", " {concept}"]


def test_owner_maps_rows_to_queries_and_texts_stay_in_order():
    rendered = Template("$ {text}").render(Letters(), [["a", "b"], ["c"]])
    assert rendered.owner.tolist() == [0, 0, 1]
    assert rendered.prompt.ids[:, 2].tolist() == codes("abc")
    assert Template("x $").render(Letters(), [["a", "b"], ["c"]]).owner.tolist() == [0, 1]


def test_concepts_reach_their_queries():
    rendered = Template("{concept}$").render(Letters(), [["-"], ["-"]], ["ab", "c"])
    assert rendered.prompt.slots.tolist() == [[3], [2]]
    with pytest.raises(InputError, match="query 1 of the batch has none"):
        Template("{concept}$").render(Letters(), [["-"], ["-"]], ["ab", ""])
    with pytest.raises(InputError, match="1 concepts"):
        Template("{concept}$").render(Letters(), [["-"], ["-"]], ["ab"])


def test_a_query_without_texts_is_named():
    with pytest.raises(InputError, match="query 1 of the batch has none"):
        Template().render(Letters(), [["a"], []])


@pytest.mark.parametrize("text", ["$ {txt}", "$ {text", "$ text}", "$ {}"])
def test_malformed_templates_are_refused(text):
    with pytest.raises(InputError, match="template"):
        Template(text)


def test_slots_are_counted():
    assert [Template(text).slots for text in ("{text}", "$ {text}", "$ and $")] == [0, 1, 2]


def test_a_row_at_the_context_fits_and_one_more_is_an_error_that_names_it():
    fits = "x" * 13
    assert tokenize(Letters(), [["", fits]]).ids.shape == (1, 16)
    with pytest.raises(InputError, match=r"\$xxxxxxxxxxxxxx.*17 tokens.*takes 16"):
        tokenize(Letters(), [["", fits + "x"]])


def test_cutting_keeps_slots_and_end_and_says_which_rows():
    prompt, cut = lay_out(Letters(), [["ab", "c" * 20], ["d"], ["e" * 20, "f", ""]], overflow="cut")
    assert cut == (0, 2)
    assert prompt.ids[0].tolist() == [1, *codes("ab$" + "c" * 11), 200]
    assert prompt.ids[2].tolist() == [1, *codes("e" * 12 + "$$"), 200]
    assert prompt.slots[2].tolist() == [13, 14]
    assert Template("$ {text}").render(Letters(), [["a" * 30]], overflow="cut").truncated == (0,)


def test_slots_that_do_not_fit_are_an_error_even_when_cutting():
    assert tokenize(Letters(), [[""] * 15], overflow="cut").slots.shape == (1, 14)
    with pytest.raises(InputError, match="15 slots and the special tokens do not fit"):
        tokenize(Letters(), [[""] * 16], overflow="cut")


@given(st.lists(st.lists(st.text("ab$ ", max_size=9), min_size=1, max_size=6), max_size=5))
def test_property_slots_stand_where_the_pieces_meet(rows):
    prompt, cut = lay_out(Letters(), rows, overflow="cut")
    for index, row in enumerate(rows):
        slots = prompt.slots[index][prompt.slots[index] >= 0]
        tokens = prompt.ids[index, 1 : prompt.ends[index]]
        assert len(slots) == len(row) - 1
        assert (np.diff(slots) > 0).all() and (prompt.ids[index, slots] == Letters.slot).all()
        assert prompt.ids[index, prompt.ends[index]] == Letters.end
        if index not in cut:
            assert tokens.tolist() == codes("$".join(piece.replace(" ", "") for piece in row))


TWO = ["is Red. ", " has a hood?"]
EXPECTED = {
    "both_orders": ["is Red and has a hood", "has a hood and is Red"],
    "first_and_second": ["is Red and has a hood"],
    "second_and_first": [" has a hood? and is Red. "],
    "capital_first": ["Is red and has a hood"],
    "raw_and": ["is Red.  and  has a hood?"],
    "comma_and": ["is Red. , and  has a hood?"],
    "adjacent": ["is Red.  has a hood?"],
    "first": ["is Red. "],
    "second": [" has a hood?"],
}


@pytest.mark.parametrize("name", JOINERS)
def test_joiners_by_hand(name):
    assert JOINERS[name](TWO) == EXPECTED[name]
    assert JOINERS[name](tuple(TWO)) == EXPECTED[name]


@pytest.mark.parametrize("name", JOINERS)
def test_a_single_text_stays_as_stored_and_none_gives_no_row(name):
    assert JOINERS[name](["Is red. "]) == ["Is red. "]
    assert JOINERS[name]([]) == []
    assert JOINERS[name].__name__ == name and JOINERS[name].__doc__


def test_an_empty_text_leaves_its_and_behind_as_the_official_code_does():
    assert JOINERS["both_orders"](["is red", ""]) == ["is red and ", " and is red"]
