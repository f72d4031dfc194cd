"""The tiny BLIP-2's tokenizer: BERT's WordPiece over the world's words, which are whole pieces."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from cir.world.files import write_text
from cir.world.tokenizer import lines

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DECODE = "[DEC]"
"""BLIP's start of generated text: the last entry, as where it is added to BERT's vocabulary."""
CONTEXT = 32
"""Positions of a text row, as BLIP-2 has; 1.4 % of the full captions that say places are longer and lose their end."""

_WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def vocabulary(texts: Iterable[str]) -> list[str]:
    """List special tokens, punctuation with `$`, letters (so that any word has pieces), and the words of `texts`."""
    words = {word for text in texts for word in _WORD.findall(text.lower())}
    marks = sorted({word for word in words if len(word) == 1 and not word.isalnum()} | set("$*,.:;!?-'()/"))
    letters = [*_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    return [*SPECIAL, *marks, *letters, *sorted(word for word in words if len(word) > 1), DECODE]


def build(folder: Path, size: int = 40_000, seed: int = 0) -> None:
    """Write the tokenizer as `BertTokenizer` loads it: `vocab.txt`, `tokenizer.json` and their settings."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    entries = vocabulary(lines(size, seed))
    vocab = {word: number for number, word in enumerate(entries)}
    fast = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece(prefix="##")
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )  # fmt: skip
    fast.add_special_tokens([*SPECIAL, DECODE])
    settings = {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": CONTEXT, "pad_token": "[PAD]",
        "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "bos_token": DECODE,
    }  # fmt: skip
    write_text(folder / "vocab.txt", "".join(f"{word}\n" for word in entries))
    write_text(folder / "tokenizer.json", fast.to_str())
    write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2))


FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")
"""What `build` writes."""
