"""Weights that a checkpoint holds under another name."""

from __future__ import annotations

from typing import Any

import pytest

from surgery.ties import may_hide_a_tie, tied_names, tied_partner, untied_settings

# (missing, present): `_tied_weights_keys` of transformers 5.23, class by class.
HUGGINGFACE = {
    "LlamaForCausalLM": ("lm_head.weight", "model.embed_tokens.weight"),
    "Gemma3ForConditionalGeneration": ("lm_head.weight", "model.language_model.embed_tokens.weight"),
    "GPT2LMHeadModel": ("lm_head.weight", "transformer.wte.weight"),
    "GPTNeoXForCausalLM": ("lm_head.weight", "gpt_neox.embed_in.weight"),
    "BertForMaskedLM": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "RobertaForMaskedLM": ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    "AlbertForMaskedLM": ("predictions.decoder.weight", "albert.embeddings.word_embeddings.weight"),
    "ElectraForMaskedLM": ("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),
    "DistilBertForMaskedLM": ("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
    "OPTForCausalLM": ("lm_head.weight", "model.decoder.embed_tokens.weight"),
    "WhisperForConditionalGeneration": ("proj_out.weight", "model.decoder.embed_tokens.weight"),
    "T5ForConditionalGeneration": ("lm_head.weight", "shared.weight"),
    "BartForConditionalGeneration": ("lm_head.weight", "model.shared.weight"),
    "BloomForCausalLM": ("lm_head.weight", "transformer.word_embeddings.weight"),
    "FalconForCausalLM": ("lm_head.weight", "transformer.word_embeddings.weight"),
}
OTHERS = [
    ("lm_head.weight", "wte.weight"),  # GPT-2 without its prefix
    ("embed_out.weight", "gpt_neox.embed_in.weight"),  # transformers 4
    ("lm_head.weight", "model.tok_embeddings.embedding_weight"),  # MindFormers
    ("output_layer.weight", "embedding.word_embeddings.weight"),  # MindFormers' parallel core
]


@pytest.mark.parametrize(("missing", "present"), [*HUGGINGFACE.values(), *OTHERS])
def test_a_head_is_tied_to_its_embedding_and_the_other_way_round(missing: str, present: str) -> None:
    assert tied_partner(missing, {present, "other.weight"}) == present
    assert tied_partner(present, {missing, "other.weight"}) == missing


@pytest.mark.parametrize(("missing", "present"), [*HUGGINGFACE.values(), *OTHERS])
@pytest.mark.parametrize(
    "config", [{"tie_word_embeddings": False}, {"text_config": {"tie_word_embeddings": False}}], ids=["top", "text"]
)
def test_a_configuration_can_untie_a_head(missing: str, present: str, config: dict[str, Any]) -> None:
    assert tied_partner(missing, {present}, config) is None


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}, {"text_config": None}])
def test_a_configuration_that_does_not_untie_leaves_it_tied(config: dict[str, Any]) -> None:
    assert tied_partner("lm_head.weight", {"model.embed_tokens.weight"}, config) == "model.embed_tokens.weight"


def test_the_embeddings_of_t5_are_one_even_where_its_head_is_untied() -> None:
    present = {"shared.weight", "lm_head.weight"}
    assert tied_partner("encoder.embed_tokens.weight", present, {"tie_word_embeddings": False}) == "shared.weight"


def test_barts_shared_embedding_comes_before_the_decoders_copy() -> None:
    present = {"model.decoder.embed_tokens.weight", "model.shared.weight"}
    assert tied_partner("lm_head.weight", present) == "model.shared.weight"


def test_the_bias_of_berts_decoder_is_tied() -> None:
    assert tied_partner("cls.predictions.decoder.bias", {"cls.predictions.bias"}) == "cls.predictions.bias"


@pytest.mark.parametrize(
    ("name", "present"),
    [
        ("lm_head.weight", {"lm_head.weight", "model.embed_tokens.weight"}),  # it is there itself
        ("lm_head.weight", {"model.layers.0.mlp.up_proj.weight"}),
        ("model.layers.0.mlp.up_proj.weight", {"model.embed_tokens.weight"}),
    ],
)
def test_what_is_not_tied_has_no_partner(name: str, present: set[str]) -> None:
    assert tied_partner(name, present) is None


@pytest.mark.parametrize("architecture", HUGGINGFACE)
def test_the_head_that_a_checkpoint_leaves_out_is_known_by_its_architecture(architecture: str) -> None:
    missing, present = HUGGINGFACE[architecture]
    config = {"architectures": [architecture]}
    embeddings = tied_names(present, {present}, config)[1:]
    assert tied_names(present, {present}, config)[0] == missing
    assert tied_names(present, {present, missing}, config) == embeddings
    assert tied_names(present, {present}, {**config, "tie_word_embeddings": False}) == embeddings
    assert tied_names(present, {present}, {"architectures": ["AModelWithoutHead"]}) == ()
    assert tied_names(present, {present}, None) == ()


def test_a_head_under_its_former_name_is_no_missing_head() -> None:
    config = {"architectures": ["GPTNeoXForCausalLM"]}
    assert tied_names("gpt_neox.embed_in.weight", {"gpt_neox.embed_in.weight", "embed_out.weight"}, config) == ()


def test_an_encoder_and_a_decoder_have_embeddings_that_are_tied_besides_the_head() -> None:
    config = {"architectures": ["BartForConditionalGeneration"]}
    embeddings = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    assert tied_names("model.shared.weight", {"model.shared.weight"}, config) == ("lm_head.weight", *embeddings)
    assert tied_names("model.shared.weight", {"model.shared.weight", "lm_head.weight"}, config) == embeddings


def test_untying_is_written_where_the_configuration_has_it() -> None:
    assert untied_settings({}) == {"tie_word_embeddings": False}
    text = {"hidden_size": 8, "tie_word_embeddings": True}
    assert untied_settings({"text_config": text}) == {
        "tie_word_embeddings": False,
        "text_config": {"hidden_size": 8, "tie_word_embeddings": False},
    }


@pytest.mark.parametrize(("saved", "written"), [({}, True), ({"scale_decoder_outputs": False}, False)])
def test_t5_still_scales_what_goes_into_its_head(saved: dict[str, Any], written: bool) -> None:
    settings = untied_settings({"model_type": "t5", **saved})
    assert settings == {"tie_word_embeddings": False, "scale_decoder_outputs": written}


@pytest.mark.parametrize(
    ("present", "config", "expected"),
    [
        ({"backbone.tokens.weight"}, {"architectures": ["NewForCausalLM"]}, True),
        ({"backbone.tokens.weight"}, {"architectures": ["NewForCausalLM"], "tie_word_embeddings": False}, False),
        ({"backbone.tokens.weight"}, {"architectures": ["NewModel"]}, False),
        ({"backbone.tokens.weight"}, None, False),
        ({"backbone.tokens.weight", "lm_head.weight"}, {"architectures": ["NewForCausalLM"]}, False),
        ({"model.embed_tokens.weight"}, {"architectures": ["NewForCausalLM"]}, False),
        ({"embeddings.word_embeddings.weight"}, {"architectures": ["BertForMaskedLM"]}, True),
    ],
)
def test_a_tie_may_be_hidden_where_neither_head_nor_embedding_is_known(
    present: set[str], config: dict[str, Any] | None, expected: bool
) -> None:
    assert may_hide_a_tie(present, config) is expected


@pytest.mark.parametrize("architectures", [1, True, {"x": 1}, [1, None], "LlamaForCausalLM"])
def test_a_configuration_whose_architectures_are_no_list_of_names_has_no_head(architectures: object) -> None:
    assert tied_names("model.embed_tokens.weight", (), {"architectures": architectures}) == ()
