"""The tiny CLIP's tokenizer: CLIP's own byte-level BPE with `</w>`, trained on the world's texts."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

from cir.world.grammar import ALL, BENCH, TRAIN, caption, edits_text
from cir.world.scenes import KINDS, propose_many, sample_scene

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 64


def lines(count: int, seed: int) -> Iterator[str]:
    """Texts that hold every word of the world: captions, and edits in both phrasings."""
    rng = random.Random(seed)
    for index in range(count):
        scene = sample_scene(rng)
        if index % 2:
            yield caption(scene, rng, ALL, chatter=True)
        else:
            edits = propose_many(scene, (rng.choice(KINDS),), rng)
            yield edits_text(scene, edits or (), rng, rng.choice((TRAIN, BENCH))) if edits else "$ * ? ! ."


def build(folder: Path, size: int = 40_000, seed: int = 0) -> None:
    """Train the tokenizer and write it as `CLIPTokenizer` loads it; end-of-text gets the largest id.

    CLIP's legacy pooling takes the position of the largest id, so the special tokens must come last.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1400, min_frequency=2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(lines(size, seed), trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab: dict[str, int] = {}
    for token in [*alphabet, *(letter + "</w>" for letter in alphabet), *model["vocab"]]:
        vocab.setdefault(token, len(vocab))
    for token in (START, END):
        vocab[token] = len(vocab)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False))
    _write(folder / "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "do_lower_case": True, "errors": "replace",
        "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END, "add_prefix_space": False,
    }  # fmt: skip
    _write(folder / "tokenizer_config.json", json.dumps(settings, indent=2))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
