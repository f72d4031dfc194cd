"""One training step of each method as the released scripts compute it. Slow on purpose.

It is the other side of every ratio in `training.py`, and an independent check of the numbers: it shares no line with
`cir`. Every text is padded to 77 tokens and runs through Hugging Face's modules with an explicit causal mask; frozen
targets are computed in every step; RTD encodes its references twice; Pic2Word and OTI leave the text tower's weights
trainable, so their gradients are computed and never used. `tower` is a `CLIPTextModelWithProjection`, `ids` are
"b 77", the slot's id is 259. Random numbers come in as arguments, so that both sides see the same ones.
"""

import torch
from torch import nn
from torch.nn import functional as F

SLOT = 259


def encode(tower, ids, pseudo=None, slots="all"):
    """Encode padded rows, pseudo-words "b w" in all slots or in the `first`; pooled where the id is largest."""
    model = tower.text_model
    words = model.embeddings.token_embedding(ids)
    if pseudo is not None:
        places = ids == SLOT
        if slots == "first":
            places = places & (places.cumsum(dim=1) == 1)
        words = torch.where(places[..., None], pseudo[:, None].to(words.dtype), words)
    states = model.embeddings(inputs_embeds=words)
    length = ids.shape[1]
    mask = torch.full((length, length), torch.finfo(states.dtype).min, dtype=states.dtype).triu(1)[None, None]
    states = model.encoder(inputs_embeds=states, attention_mask=mask).last_hidden_state
    states = model.final_layer_norm(states)
    pooled = states[torch.arange(len(ids)), ids.argmax(dim=1)]
    return tower.text_projection(pooled)


def phi(width, hidden):
    """The projector of SEARLE and LinCIR without its dropout, whose masks come in as arguments."""
    return nn.ModuleDict({"0": nn.Linear(width, hidden), "3": nn.Linear(hidden, hidden), "6": nn.Linear(hidden, width)})


def project(layers, x, masks=None, rate=0.5):
    """Apply `phi`; `masks` are the kept places behind its first and second layer."""
    for name in ("0", "3"):
        x = F.gelu(layers[name](x))
        if masks is not None:
            x = x * masks[name] / (1 - rate)
    return layers["6"](x)


def im2text(width, middle):
    """Pic2Word's projector, likewise."""
    return nn.ModuleDict(
        {"0": nn.Linear(width, middle), "1": nn.Linear(middle, middle), "out": nn.Linear(middle, width)}
    )


def project_image(layers, x, masks, rate=0.1):
    """Apply `im2text`: dropout stands before the ReLU."""
    for name in ("0", "1"):
        x = F.relu(layers[name](x) * masks[name] / (1 - rate))
    return layers["out"](x)


def contrast(left, right, temperature):
    """NT-Xent as it is released: exponentials summed, one's own taken away."""
    z = torch.cat([F.normalize(left, dim=-1), F.normalize(right, dim=-1)])
    exponentials = torch.exp(z @ z.T / temperature)
    others = exponentials.sum(dim=1) - exponentials.diagonal()
    positive = torch.exp((z[: len(left)] * z[len(left) :]).sum(dim=1) / temperature)
    return -torch.log(torch.cat([positive, positive]) / others).mean()


def cosine(x, y):
    """One minus the cosine, averaged."""
    return F.cosine_embedding_loss(x, y, torch.ones(len(x)))


def lincir(tower, layers, caption, masked, scale, noise, masks):
    """LinCIR: encode the caption, perturb it, project it, encode the masked caption; mean squared error."""
    with torch.no_grad():
        target = encode(tower, caption)
    word = project(layers, target + scale * noise, masks)
    return F.mse_loss(encode(tower, masked, word), target)


def rtd(frozen, trained, layers, target, reference, composed, special, scale, noise):
    """RTD: frozen targets of both captions, the reference once more for its word; NT-Xent of 2b rows."""
    with torch.no_grad():
        anchors = encode(frozen, torch.cat([target, reference]))
        again = encode(frozen, reference)
        word = project(layers, again + 0.5 * scale * noise)
    queries = encode(trained, torch.cat([composed, special]), torch.cat([word, word]))
    return contrast(anchors, queries, 0.07)


def pic2word(tower, layers, image, sentence, masks):
    """Pic2Word: "a photo of *" with the projected image, cross-entropy both ways; the tower is not frozen."""
    text = encode(tower, sentence, project_image(layers, image, masks))
    logits = 100.0 * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    diagonal = torch.arange(len(image))
    return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2


def oti(tower, word, image, template, phrase, masked):
    """One step of textual inversion (3.2): three encodes with gradient, the tower not frozen."""
    content = cosine(encode(tower, template, word, "first"), image)
    regular = cosine(encode(tower, masked, word, "first"), encode(tower, phrase))
    return (content + 0.5 * regular) / 1.5


def searle(tower, layers, image, token, phrase, masked, masks):
    """SEARLE's distillation (3.3): NT-Xent to the inverted tokens, and the phrase as regulariser."""
    word = project(layers, image, masks)
    regular = cosine(encode(tower, phrase), encode(tower, masked, word, "first"))
    return contrast(token, word, 0.25) + 0.75 * regular
