"""The forms that an adapter has for whoever loads it: where it lies, and what its tensors are called."""

from __future__ import annotations

from dataclasses import replace

from chains.adapters import Adapter, Pair, names_for
from chains.networks import HUGGING_FACE, MINDFORMERS, PLAIN, translated
from chains.state import Chain
from chains.storing import FILE, FOLDER, Stored

PLAIN_FORMS = ("keep", "ckpt", "safetensors")
FORMS = (*PLAIN_FORMS, "peft", "mindformers", "slora")

_STYLES = {"peft": HUGGING_FACE, "mindformers": MINDFORMERS, "slora": MINDFORMERS}


def adapter_place(chain: Chain, form: str, own_suffix: str) -> Stored:
    stem = chain.stem("adapter")
    suffix = {"ckpt": ".ckpt", "slora": ".ckpt"}.get(form, ".safetensors")
    if form == "keep":
        suffix = own_suffix
    if form in PLAIN_FORMS and suffix and chain.chance(0.4):
        return Stored(f"{stem}{suffix}", FILE, suffix)
    return Stored(stem, FOLDER, suffix)


def nested(place: Stored, form: str) -> Stored:
    """Where the adapter itself lies: SLoRA has a folder of adapters."""
    return replace(place, path=f"{place.path}/{place.path}") if form == "slora" else place


def new_family(form: str, own: str) -> str:
    return {"peft": "peft", "mindformers": "mindpet", "slora": "pynative"}.get(form, own)


def new_spelling(chain: Chain, form: str, own: str) -> str:
    """Whose names an adapter's layers have in a form."""
    return own if chain.style == PLAIN else _STYLES.get(form, own)


def fits(adapter: Adapter, form: str) -> bool:
    """Whether a form has a place for all of it: MindFormers knows no DoRA, and SLoRA but A and B of one rank."""
    if form in ("mindformers", "slora") and any(pair.magnitudes is not None for pair in adapter.pairs.values()):
        return False
    is_plain = len({pair.rank for pair in adapter.pairs.values()}) == 1 and not adapter.saved
    return form != "slora" or is_plain


def renamed_pair(chain: Chain, weight: str, pair: Pair, form: str) -> Pair:
    """A and B under the names that a library has for them."""
    if form not in _STYLES:
        return pair
    name = weight if chain.style == PLAIN else translated(weight, _STYLES[form])
    a_name, b_name = names_for(name, new_family(form, ""))
    return replace(pair, a_name=a_name, b_name=b_name)


def renamed_weight(chain: Chain, weight: str, name: str, form: str, family: str) -> str:
    """The name of a tensor that was trained as a whole, in an adapter that is made of one of a family."""
    if form not in _STYLES:
        return name
    place = weight if chain.style == PLAIN else translated(weight, _STYLES[form])
    if form != "peft":
        return place
    # PEFT's own names stay, with what PEFT puts between.
    is_own = family == "peft" and name.startswith(f"base_model.model.{place.rpartition('.')[0]}.")
    return name if is_own else f"base_model.model.{place}"
