"""Tied weights: a network that uses one parameter in two places saves it under one of its names.

The names are those of `_tied_weights_keys` in transformers 5.23 and of its forerunners, and of MindFormers 1.9.0.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from typing import Any

__all__ = ["may_hide_a_tie", "tied_names", "tied_partner", "untied_settings"]

_HEADS = (
    "lm_head.weight",
    "embed_out.weight",
    "proj_out.weight",
    "output_layer.weight",
    "decoder.weight",
    "projector.weight",
)

# Each row: the name under which the parameter is saved, then its other names. An encoder-decoder's come before those of
# a decoder alone, whose names are among them.
_TIED = (
    # LLaMA, Qwen, Mistral, Gemma, Phi, Cohere; the texts of LLaVA, Qwen-VL, Gemma 3
    ("model.embed_tokens.weight", "lm_head.weight"),
    ("model.language_model.embed_tokens.weight", "lm_head.weight"),
    ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
    # GPT-2, GPT-J, GPT-Neo, GPTBigCode, MPT; GPT-2 as the first checkpoints on the Hub have it
    ("transformer.wte.weight", "lm_head.weight"),
    ("wte.weight", "lm_head.weight"),
    # GPT-NeoX, Pythia: `embed_out` before transformers 5
    ("gpt_neox.embed_in.weight", "lm_head.weight", "embed_out.weight"),
    # Bloom, Falcon
    ("transformer.word_embeddings.weight", "lm_head.weight"),
    ("word_embeddings.weight", "lm_head.weight"),
    # T5, mT5, UMT5; BART, mBART
    ("shared.weight", "lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    (
        "model.shared.weight",
        "lm_head.weight",
        "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
    ),
    # OPT, Whisper
    ("model.decoder.embed_tokens.weight", "lm_head.weight", "proj_out.weight"),
    # BERT, RoBERTa, ALBERT, DeBERTa, ELECTRA, DistilBERT: the output of masked language modelling
    ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ("albert.embeddings.word_embeddings.weight", "predictions.decoder.weight"),
    ("deberta.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ("electra.embeddings.word_embeddings.weight", "generator_lm_head.weight"),
    ("distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),
    ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ("lm_head.bias", "lm_head.decoder.bias"),
    ("predictions.bias", "predictions.decoder.bias"),
    # MindFormers: LLaMA; the parallel core, with and without the outer cell's name
    ("model.tok_embeddings.embedding_weight", "lm_head.weight"),
    ("embedding.word_embeddings.weight", "output_layer.weight"),
    ("model.embedding.word_embeddings.weight", "model.output_layer.weight"),
)


def tied_partner(name: str, present_names: Container[str], config_json: Mapping[str, Any] | None = None) -> str | None:
    """The weight that a missing one is tied to.

    Args:
        name: A weight that is not in the checkpoint.
        present_names: The names that are.
        config_json: The model's `config.json`. Where it says `tie_word_embeddings: false`, an output head is no copy of
            the embedding; the two embeddings of an encoder and a decoder are one all the same.

    Returns:
        The name in the checkpoint; None where the name is not known to be tied, or its partner is missing too.
    """
    if name in present_names:
        return None
    untied = config_json is not None and _says_untied(config_json)
    for row in _TIED:
        if name not in row:
            continue
        for other in row:
            if other != name and other in present_names and not (untied and _is_tied_by_choice(name, other)):
                return other
    return None


# The architectures that have an output head: without one, a missing head is missing because there is none.
_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining")


def tied_names(
    name: str, present_names: Container[str], config_json: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """The missing weights that are tied to one which is there.

    Args:
        name: A weight of the checkpoint.
        present_names: All names of the checkpoint.
        config_json: The model's `config.json`. Without one, or for an architecture without an output head, nothing is
            known to be missing.

    Returns:
        The other names of that weight: an encoder's and a decoder's embedding, and of several spellings of an output
        head the one that transformers 5 uses.
    """
    if config_json is None or not _has_head(config_json):
        return ()
    for row in _TIED:
        if name != row[0]:
            continue
        missing = [other for other in row[1:] if tied_partner(other, present_names, config_json) == name]
        embeddings = [other for other in missing if other.endswith("embed_tokens.weight")]
        spellings = [other for other in row[1:] if not other.endswith("embed_tokens.weight")]
        if any(other in present_names for other in spellings):
            return tuple(embeddings)
        is_whisper = "Whisper" in str(config_json.get("architectures"))
        head = spellings[-1] if is_whisper else spellings[0]
        return tuple(other for other in (head, *embeddings) if other in missing)
    return ()


def may_hide_a_tie(present_names: Collection[str], config_json: Mapping[str, Any] | None) -> bool:
    """Whether a network's output head may be tied to an embedding under names that are not known.

    It is so where the architecture has a head, the configuration does not untie it, and the checkpoint has neither a
    head nor an embedding that is known to be tied to one.
    """
    if config_json is None or not _has_head(config_json) or _says_untied(config_json):
        return False
    if any(name.endswith(_HEADS) for name in present_names):
        return False
    return not any(row[0] in present_names for row in _TIED if row[0].endswith("weight"))


def untied_settings(config_json: Mapping[str, Any]) -> dict[str, object]:
    """What `config.json` has to say where weights that were tied no longer are.

    Args:
        config_json: The model's `config.json`.

    Returns:
        The entries to set.
    """
    settings: dict[str, object] = {"tie_word_embeddings": False}
    text = config_json.get("text_config")
    if isinstance(text, Mapping) and "tie_word_embeddings" in text:
        settings["text_config"] = {**text, "tie_word_embeddings": False}
    if config_json.get("model_type") in _SCALING_BY_TIE:
        settings["scale_decoder_outputs"] = config_json.get("scale_decoder_outputs", True)
    return settings


# T5 scales what goes into its head if the two are tied; transformers 5 has a setting for it, whose default is that tie.
_SCALING_BY_TIE = frozenset({"t5", "mt5", "umt5", "longt5", "pop2piano", "udop"})


def _has_head(config: Mapping[str, Any]) -> bool:
    listed = config.get("architectures")
    return isinstance(listed, list) and any(str(entry).endswith(_WITH_HEAD) for entry in listed)


def _says_untied(config: Mapping[str, Any]) -> bool:
    if config.get("tie_word_embeddings") is not None:
        return config["tie_word_embeddings"] is False
    text = config.get("text_config")
    return isinstance(text, Mapping) and text.get("tie_word_embeddings") is False


def _is_tied_by_choice(name: str, other: str) -> bool:
    """Whether the configuration decides: it does on a head and an embedding, not on biases or on two embeddings."""
    heads = [one.endswith(_HEADS) for one in (name, other)]
    return heads[0] != heads[1]
