"""Kubernetes quantities ("512Mi", "2", "1.5G"): reading, comparing and the pattern that the CRD checks them with."""

import re
from decimal import Decimal

PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"

_FORM = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_FACTORS: dict[str | None, Decimal] = {
    None: Decimal(1),
    "m": Decimal("0.001"),
    **{letter: Decimal(1000**power) for power, letter in enumerate("kMGTP", 1)},
    **{f"{letter}i": Decimal(1024**power) for power, letter in enumerate("KMGTP", 1)},
}


def amount(quantity: str | int) -> Decimal:
    """The number of base units (bytes, cores) a quantity stands for. Raises ValueError when it is malformed."""
    match = _FORM.fullmatch(str(quantity))
    if match is None:
        raise ValueError(f"{quantity!r} is not a quantity such as 500m, 2 or 16Gi")
    return Decimal(match[1]) * _FACTORS[match[2]]


def same(left: str | int, right: str | int) -> bool:
    """Whether two spellings mean one amount: the API server rewrites 1024Mi as 1Gi."""
    try:
        return amount(left) == amount(right)
    except ValueError:
        return left == right
