"""From the string of timm or MindCV to the policy."""

import re
from functools import partial

from mindcv_reparam.data.auto_augment.policies import AugMix, AutoAugment, Operation, Policy, RandAugment
from mindcv_reparam.data.auto_augment.tables import (
    AUGMIX,
    AUTO_POLICIES,
    GROWING,
    MINDCV_PLAIN,
    MINDCV_WEIGHTS,
    PLAIN,
    POSTERIZE,
    TIMM_3A_WEIGHTS,
    TIMM_WEIGHTS,
)
from mindcv_reparam.errors import UserError, shortened
from mindcv_reparam.suggestions import suggestion

_OPTIONS = {
    "rand": ("m", "n", "p", "mstd", "mmax", "inc", "t"),
    "randaug": ("m", "n", "p", "mstd", "mmax", "inc", "w"),
    "augmix": ("m", "w", "d", "a", "mstd"),
    "trivialaugwide": ("m",),
    **dict.fromkeys(AUTO_POLICIES, ("mstd",)),
}
_WHOLE_NUMBERS = frozenset({"n", "inc", "w", "d"})


def parse_auto_augment(text: str) -> Policy:
    """The policy that a string names. Raises UserError, naming the nearest valid policy or the policy's options."""
    name, *sections = text.split("-")
    if name not in _OPTIONS:
        meant = suggestion(name, _OPTIONS, quoted=True)
        raise UserError(
            f"auto_augment {shortened(text)!r}: unknown policy {shortened(name)!r}, of {', '.join(_OPTIONS)}{meant}"
        )
    options, weights = _parse_options(text, name, _rejoin_signs(sections))
    if name in AUTO_POLICIES:
        return _auto_augment(name, options)
    if name == "augmix":
        return _augmix(options)
    if name == "trivialaugwide":
        return _trivial_augment(options)
    return _rand_augment(text, name, options, weights)


def _rejoin_signs(sections: list[str]) -> list[str]:
    """``d-1`` was split at its sign."""
    joined: list[str] = []
    for section in sections:
        if joined and joined[-1].isalpha() and section[:1].isdigit():
            joined[-1] += f"-{section}"
        else:
            joined.append(section)
    return joined


def _parse_options(text: str, name: str, sections: list[str]) -> tuple[dict[str, float], str | None]:
    """The options that are numbers, by their letters, and the name behind the one that is none, "t"."""
    options: dict[str, float] = {}
    weights = None
    for section in sections:
        if name == "rand" and section.startswith("t"):
            weights = section[1:]
            continue
        match = re.fullmatch(r"([a-z]+?)(-?\d+(?:\.\d*)?|inf)", section)
        if match is None or match[1] not in _OPTIONS[name]:
            raise UserError(
                f"auto_augment {text!r}: {section!r} is no option of {name!r}, which takes {', '.join(_OPTIONS[name])} "
                f"followed by a number"
            )
        value = float(match[2])
        if match[1] in _WHOLE_NUMBERS and not value.is_integer():
            raise UserError(f"auto_augment {text!r}: {match[1]} takes a whole number, not {match[2]}")
        if value < 0 and match[1] != "d":
            raise UserError(f"auto_augment {text!r}: {match[1]} must not be negative")
        options[match[1]] = value
    return options, weights


def _auto_augment(name: str, options: dict[str, float]) -> AutoAugment:
    table, posterize, deviation = AUTO_POLICIES[name]
    deviation = options.get("mstd", deviation)
    subpolicies = []
    for line in table.replace(POSTERIZE, posterize).replace("\n", " ").split(";"):
        steps = (step.split() for step in line.split(","))
        subpolicies.append(tuple(Operation(op, float(prob), float(size), deviation) for op, prob, size in steps))
    return AutoAugment(tuple(subpolicies))


def _rand_augment(text: str, name: str, options: dict[str, float], chosen: str | None) -> RandAugment:
    increasing = bool(options.get("inc", 0))
    plain, default_deviation = (MINDCV_PLAIN, 0.5) if name == "randaug" else (PLAIN, 0.0)
    weighted: dict[str, float] | None = None
    names = _increasing(plain) if increasing else plain
    if chosen is not None:
        sets = {"weights": TIMM_WEIGHTS, "3aw": TIMM_3A_WEIGHTS, "3a": None}
        if chosen not in sets:
            raise UserError(f"auto_augment {text!r}: unknown set t{chosen}, known are tweights, t3a and t3aw")
        weighted = sets[chosen]
        names = tuple(weighted) if weighted else ("SolarizeIncreasing", "Desaturate", "GaussianBlur")
    elif "w" in options:
        if options["w"] != 0:
            raise UserError(f"auto_augment {text!r}: there is one set of weights, w0")
        weighted = {kind: MINDCV_WEIGHTS[base] for kind, base in zip(names, plain)}
    weights = None
    if weighted:
        total = sum(weighted.values())
        weights = tuple(weight / total for weight in weighted.values())
    layers = int(options.get("n", 2))
    if weights and layers > sum(weight > 0 for weight in weights):
        raise UserError(
            f"auto_augment {text!r}: n{layers} is more than there are operations to draw without repetition"
        )
    deviation = options.get("mstd", default_deviation)
    operation = partial(
        Operation,
        probability=options.get("p", 0.5),
        magnitude=options.get("m", 10.0),
        deviation=float("inf") if deviation > 100 else deviation,
        maximum=options.get("mmax", 10.0),
    )
    return RandAugment(tuple(operation(kind) for kind in names), layers, weights)


def _augmix(options: dict[str, float]) -> AugMix:
    operation = partial(
        Operation,
        probability=1.0,
        magnitude=options.get("m", 3.0),
        deviation=options.get("mstd", float("inf")),
        scale="augmix",
    )
    return AugMix(
        tuple(operation(name) for name in _increasing(AUGMIX)),
        alpha=options.get("a", 1.0),
        width=int(options.get("w", 3)),
        depth=int(options.get("d", -1)),
    )


def _trivial_augment(options: dict[str, float]) -> RandAugment:
    magnitude = options.get("m", 31.0)
    operations = (Operation(name, 1.0, magnitude, float("inf"), magnitude, "wide") for name in MINDCV_PLAIN)
    return RandAugment(tuple(operations), layers=1)


def _increasing(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}Increasing" if name in GROWING else name for name in names)
