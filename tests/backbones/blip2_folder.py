"""A folder with a tiny random BLIP-2 retrieval model: `from tests.backbones.blip2_folder import tiny_blip2`."""

import json

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = (
    "a an the photo of that is red blue green dress shirt has shorter longer sleeves and with two dogs cats on "
    "grass sofa instead more similar person holding umbrella rain small large circle square left right"
).split()


def save_bert_tokenizer(folder, words=WORDS):
    """WordPiece over the given words, letters for all others; ids of [PAD], [UNK], [CLS], [SEP], [DEC] come first."""
    from transformers import BertTokenizer

    marks = "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *marks, *LETTERS, *(f"##{c}" for c in LETTERS)]
    tokens = list(dict.fromkeys([*tokens, *words]))
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, do_lower_case=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_blip2(
    folder, *, vision="blip_2_vision_model", side=32, patch=8, vision_width=48, width=32, layers=4, joint=24,
    queries=32, positions=64, temperature=0.05, words=WORDS, seed=0,
):  # fmt: skip
    """Write it into `folder`: weights, tokenizer, preprocessing; `vision` may be `clip_vision_model` (LAVIS's ViT-L).

    The weights have a spread of their own: with the initial ones every text and every picture would look alike.
    """
    from transformers import Blip2Config, Blip2ForImageTextRetrieval
    from transformers.utils import logging

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = save_bert_tokenizer(folder, words)
    tower = {"hidden_size": vision_width, "intermediate_size": 2 * vision_width, "num_hidden_layers": 3,
             "num_attention_heads": 2, "image_size": side, "patch_size": patch, "model_type": vision}  # fmt: skip
    qformer = {"vocab_size": len(tokenizer), "hidden_size": width, "num_hidden_layers": layers,
               "num_attention_heads": 2, "intermediate_size": 2 * width, "max_position_embeddings": positions,
               "encoder_hidden_size": vision_width, "use_qformer_text_input": True}  # fmt: skip
    text = {"model_type": "opt", "num_hidden_layers": 1, "hidden_size": 16, "ffn_dim": 16, "num_attention_heads": 1,
            "vocab_size": 8, "word_embed_proj_dim": 16}  # fmt: skip
    options = {"vision_config": tower, "qformer_config": qformer, "text_config": text}
    options |= {"num_query_tokens": queries, "image_text_hidden_size": joint}
    if vision == "clip_vision_model":
        from cir.backbones.blip2 import Blip2ClipConfig, Blip2ClipForImageTextRetrieval

        make, config = Blip2ClipForImageTextRetrieval, Blip2ClipConfig(**options)
    else:
        make, config = Blip2ForImageTextRetrieval, Blip2Config(**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name.lower():
                    parameter.add_(0.2 * torch.randn_like(parameter))
                else:
                    fan = parameter.shape[-1] if parameter.ndim == 2 and "embeddings" not in name else 4
                    parameter.copy_(torch.randn_like(parameter) * fan**-0.5)
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cir": {"temperature": temperature}}, indent=2))
    processor = {"image_processor_type": "BlipImageProcessor", "do_resize": True, "do_rescale": True,
                 "do_normalize": True, "size": {"height": side, "width": side}, "resample": 3,
                 "rescale_factor": 1 / 255, "image_mean": [0.48145466, 0.4578275, 0.40821073],
                 "image_std": [0.26862954, 0.26130258, 0.27577711]}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
