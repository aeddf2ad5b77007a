"""What this model is and how its files were made, from their headers alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from posprobe.analysis import Analysis, kept, planned_items, way_of_writing
from posprobe.report.settings import settings_as_options, settings_in_words
from posprobe.stimuli import DEFAULT_CORPUS, UNNAMED
from posprobe.store import ActivationStore, Header

__all__ = ["commands", "kind", "model_facts"]

SMALL = 1e9
QUANTIZED = re.compile(r"(?:I?Q|TQ|MXFP|NVFP)(\d)", re.IGNORECASE)
AUDIT_DEFAULT = (40, 32)


def _bits(header: Header) -> str | None:
    """Bits per weight, from a quantization's name such as Q4_K_M; None for F16 and BF16."""
    name = str(header.config.get("posprobe_quantization", "none"))
    found = QUANTIZED.match(name)
    return found and found[1]


def kind(header: Header) -> str:
    """What limits how far findings generalise: "4-bit quantised", "small", both or neither."""
    bits = _bits(header)
    words = [f"{bits}-bit quantised"] if bits else []
    # a transformer block has about 12 d² weights; embeddings come on top
    if 12 * header.n_layers * header.width**2 < SMALL:
        words.append("small")
    return " ".join(words)


def model_facts(analysis: Analysis) -> list[tuple[str, str]]:
    """What the headers say of the model and its captures: names and values for a table."""
    header = analysis.files.all()[0].header
    config = header.config
    windows = sorted({w for w in header.layer_window if w})
    windowed = sum(1 for w in header.layer_window if w)
    facts = [
        ("model", header.model),
        ("origin", _origin(analysis.files.all()[0])),
        ("architecture", str(config.get("model_type", "unknown"))),
        ("size", f"{header.n_layers} layers, {header.n_heads} heads, width {header.width}"),
        ("quantization", str(config.get("posprobe_quantization", "none"))),
        ("computed in", ", ".join(dict.fromkeys(s.compute_type for s in analysis.files.all()))),
        ("rounding, seen in float64", _rounding(analysis)),
        ("variant", header.variant),
        ("longest sequence", _longest(analysis)),
        (
            "sliding window",
            f"{', '.join(map(str, windows))} tokens in {windowed} of {header.n_layers} layers"
            if windows
            else "none",
        ),
        ("rotary embedding", _compact(config.get("rope_parameters"))),
        ("rotary frequencies", _other_rotation(config)),
        ("attention into the stream", way_of_writing(analysis.files.all()[0]).strip()),
        ("left at position 0", _kept(analysis)),
        ("weights, SHA-256", header.weights_digest or "not recorded"),
        ("text", _texts(analysis)),
        ("first tokens", _first_tokens(analysis)),
        ("stimuli, SHA-256 of tokens", _digests(analysis)),
        ("digests", _without_digests(analysis)),
        ("repeated items", _repeats(analysis)),
        ("windows", planned_items(analysis.files.shifted) if analysis.files.shifted else ""),
        ("intervals", settings_in_words(analysis.inference)),
        ("seed", str(header.seed)),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(header.versions.items()))),
    ]
    return [(name, value) for name, value in facts if value]


def _origin(store: ActivationStore) -> str:
    """Where a model in memory came from; nothing for one that was loaded by its name."""
    if store.origin is None:
        return ""
    words = {name: ", ".join(v) if isinstance(v, list) else v for name, v in store.origin.items()}
    known = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in words.items())
    return f"in memory ({known}); changes of its code are not recorded"


def _compact(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in sorted(value.items())) if value else "none"


def _other_rotation(config: Mapping[str, Any]) -> str:
    gap = config.get("posprobe_other_rotation")
    return f"not those of the configuration: they differ by up to {gap:.2g} of it" if gap else ""


def _kept(analysis: Analysis) -> str:
    return next(filter(None, map(kept, analysis.files.replaced)), "").strip()


def _rounding(analysis: Analysis) -> str:
    """The rounding of each file, files of the same rounding together."""
    by_size: dict[str, list[str]] = {}
    for store in analysis.files.all():
        name = store.path.name.removesuffix(".h5")
        by_size.setdefault(store.rounding_in_words(), []).append(name)
    return "; ".join(f"{', '.join(names)}: {size}" for size, names in by_size.items())


def _longest(analysis: Analysis) -> str:
    header = max((store.header for store in analysis.files.all()), key=lambda h: h.length)
    past = header.length > header.trained_length > 0
    note = f", more than the {header.trained_length:,} that the model was made for" if past else ""
    return f"{header.length:,} tokens{note}"


def _texts(analysis: Analysis) -> str:
    names = (store.header.stimulus.get("corpus") for store in analysis.files.all())
    return "; ".join(dict.fromkeys(name for name in names if name))


def _first_tokens(analysis: Analysis) -> str:
    parts = []
    for name in ("natural", "shifted"):
        store = getattr(analysis.files, name)
        if store is None:
            continue
        first = store.header.stimulus.get("first_tokens") or sorted({*store.tokens[:, 0].tolist()})
        what = f"token {first[0]}" if len(first) == 1 else f"{len(first)} different tokens"
        parts.append(f"{name}: {what}" + (" (BOS)" if store.has_bos else " (no BOS)"))
    return "; ".join(parts)


def _digests(analysis: Analysis) -> str:
    found = {
        store.path.name: str(store.header.stimulus.get("tokens_sha256", ""))[:16]
        for store in analysis.files.all()
    }
    by_digest: dict[str, list[str]] = {}
    for name, digest in found.items():
        if digest:
            by_digest.setdefault(digest, []).append(name.removesuffix(".h5"))
    return "; ".join(f"{', '.join(names)}: {digest}" for digest, names in by_digest.items())


def _repeats(analysis: Analysis) -> str:
    """Name the repeated items of each file; nothing if all are different."""
    said = [
        f"{store.path.name.removesuffix('.h5')}: {store.repeats_in_words()}"
        for store in analysis.files.all()
        if store.repeated_items
    ]
    return "; ".join([*said, "intervals take them as independent"]) if said else ""


def _without_digests(analysis: Analysis) -> str:
    names = [store.path.name for store in analysis.files.all() if not store.n_digests]
    return f"none in {', '.join(names)}: format 1 does not show damage to data" if names else ""


def commands(analysis: Analysis) -> list[str]:
    """Command lines that make the files and this page again."""
    audit = _audit(analysis)
    if analysis.files.all()[0].origin is not None:
        captures = []  # no command loads what was in memory
    elif audit is not None:
        captures = [audit]
    else:
        intervened = analysis.files.intervened()
        stores = [store for store in analysis.files.all() if store not in intervened]
        captures = [_capture(part) for store in stores for part in store.parts]
    options = settings_as_options(analysis.inference)
    return [*captures, f"posprobe analyze *.h5 -o REPORT{options}"]


def _audit(analysis: Analysis) -> str | None:
    files = analysis.files
    if files.natural is None or files.shifted is None:
        return None
    asked = files.shifted.header.stimulus.get("precision", {})
    pilot = asked.get("pilot", files.shifted.n_items)
    header, sizes = files.natural.header, (files.natural.n_items, pilot)
    if sizes != AUDIT_DEFAULT and sizes[0] != sizes[1]:
        return None
    return _command(
        ["audit", *_model(header)],
        variants=header.variant if header.variant != "standard" else None,
        n=None if sizes == AUDIT_DEFAULT else sizes[0],
        length=files.natural.length,
        seed=header.seed,
        model_dtype=_model_dtype(files.natural),
        **_text_options(header),
        precision=f"{asked['quantity']}={asked['target']:g}" if asked else None,
        max_items=asked.get("most"),
        full=bool(files.intervened()),
    )


def _model(header: Header) -> list[str]:
    """What the model is loaded by, and its name where it was given another."""
    asked = header.options.get("model", {}).get("model", header.model)
    return [asked] if asked == header.model else [asked, "--name", header.model]


def _capture(store: ActivationStore) -> str:
    header = store.header
    return _command(
        ["capture", *_model(header), "-o", store.path.name],
        design=header.design,
        bos=header.stimulus.get("bos"),
        position0=header.position0_treatment if header.position0_treatment != "native" else None,
        variant=header.variant if header.variant != "standard" else None,
        n=store.n_items,
        first_item=header.stimulus.get("first_item"),
        length=store.length,
        window=header.window or None,
        seed=header.seed,
        model_dtype=_model_dtype(store),
        **_text_options(header),
    )


def _model_dtype(store: ActivationStore) -> str | None:
    """The type to ask for, where it is another than the command line's own."""
    return store.compute_type if store.compute_type in ("float64", "bfloat16") else None


def _text_options(header: Header) -> dict[str, Any]:
    """The options that name the user's text; none for the default text."""
    name = header.stimulus.get("corpus")
    if not name or name.startswith(DEFAULT_CORPUS) or UNNAMED in name:
        return {}
    text = header.stimulus.get("text", {})
    field = text.get("field")
    return {
        "text": text.get("given") or [name],
        "text_field": None if field == "text" else field,
        "text_characters": text.get("limit"),
    }


def _command(words: list[str], *, full: bool = False, **options: Any) -> str:
    values = {k: v if isinstance(v, list) else [v] for k, v in options.items() if v is not None}
    given = [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, each in values.items()
        for value in each
    ]
    return " ".join(["posprobe", *map(shlex.quote, words), *given, *(["--full"] if full else [])])
