"""The tokenizer of a checkpoint, as prompts need it: pieces to ids, and the special ids around them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from cir.errors import InputError

FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",), ("tokenizer.model",), ("vocab.txt",))
"""The forms a tokenizer comes in, each a set of files."""


BLANKED = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
"""The marks that LAVIS takes out of captions."""


def blip_caption(text: str) -> str:
    """Clean a text as LAVIS's processor of that name does for BLIP and BLIP-2: lower-case, some punctuation blank.

    Hyphens, commas, slashes, apostrophes and question marks stay; any white space counts as one blank, which word
    pieces do not see. LAVIS also cuts behind the fiftieth word, which is left out: BLIP-2's 32 positions hold 30.

    >>> blip_caption("The dog (a Husky) runs...  fast; it's well-fed!")
    "the dog a husky runs fast it's well-fed"
    """
    return " ".join(text.lower().translate(BLANKED).split())


class PieceTokenizer:
    """A Hugging Face tokenizer behind `cir.backbones.base.Tokenizer`.

    Its own specials, padding and truncation are not used; a prompt is laid out by `cir.prompts`. Note that the ids
    are this checkpoint's: tokenizers that use `!` as padding (id 0 in Stable Diffusion XL's second one, with which
    LinCIR and RTD were trained) read an exclamation mark differently.
    """

    def __init__(
        self, tokenizer: Any, context: int, fixed_length: bool, clean: Callable[[str], str] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._clean = clean
        # SigLIP 2 was trained on lower-cased text, which the Gemma tokenizer its checkpoints name does not do.
        self._lower = type(tokenizer).__name__.startswith(("Gemma", "Siglip2"))
        self._fast = tokenizer.backend_tokenizer if getattr(tokenizer, "is_fast", False) else None
        self.context = context
        self.fixed_length = fixed_length
        self.start, self.end = self._specials()
        if self._fast is not None:  # tokenizer.json may carry settings of its own
            self._fast.no_truncation()
            self._fast.no_padding()
        self.pad: int = self.end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        dollar = self.pieces("$")
        # SigLIP's tokenizer drops punctuation; the embedding of a slot's id is replaced, so any id does.
        unknown = self.end if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)
        self.slot: int = dollar[0] if len(dollar) == 1 else unknown

    def _specials(self) -> tuple[tuple[int, ...], int]:
        """Read the ids around a text off an example: what is in front (perhaps nothing), and the one behind."""
        bare, full = self.pieces("a"), list(self._tokenizer("a")["input_ids"])
        places = [i for i in range(len(full) - len(bare) + 1) if bare and full[i : i + len(bare)] == bare]
        if not places:
            raise InputError("tokenizer: it does not know the letter a; expected the checkpoint's own tokenizer")
        behind = full[places[0] + len(bare) :]
        end = behind[0] if behind else self._tokenizer.eos_token_id
        if end is None:
            raise InputError("tokenizer: it has no end-of-text token; expected the checkpoint's own tokenizer")
        return tuple(full[: places[0]]), int(end)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits over all that decides how a text becomes a row of ids."""
        fast = self._fast
        rules = json.dumps(sorted(self._tokenizer.get_vocab().items())) if fast is None else fast.to_str()
        kind = [type(self._tokenizer).__name__, self._lower, self.start, self.end, self.pad, self.slot, self.context]
        kind += [] if self._clean is None else [self._clean.__name__]
        return hashlib.sha256(json.dumps([rules, kind, self.fixed_length]).encode()).hexdigest()[:16]

    def pieces(self, text: str) -> list[int]:
        """Turn text into ids, without special ids, without truncation."""
        text = text.lower() if self._lower else text
        text = text if self._clean is None else self._clean(text)
        if self._fast is not None:  # ten times faster than the call that wraps it
            return list(self._fast.encode(text, add_special_tokens=False).ids)
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids back into text."""
        return str(self._tokenizer.decode(list(ids)))


def load_tokenizer(
    folder: Path,
    context: int,
    fixed_length: bool,
    kind: str = "AutoTokenizer",
    clean: Callable[[str], str] | None = None,
) -> PieceTokenizer:
    """Read the tokenizer beside a checkpoint's weights; InputError where it is absent or needs an optional package.

    `kind` is its class in `transformers` where config.json's model type does not say which, `clean` what is done with
    a text first.
    """
    import transformers

    # Without any of them `transformers` would make a tokenizer that knows three tokens.
    if not any(all((folder / name).is_file() for name in names) for names in FILES):
        looked = ", ".join(" with ".join(names) for names in FILES)
        raise InputError(f"{folder}: no tokenizer; looked for {looked}")
    try:
        tokenizer = getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError, TypeError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise InputError(f"{folder}: tokenizer not usable ({reason}); SigLIP needs pip install 'cir[siglip]'") from None
    return PieceTokenizer(tokenizer, context, fixed_length, clean)
