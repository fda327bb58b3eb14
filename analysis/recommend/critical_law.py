"""A critical_batch law as McCandlish's B_crit in tokens, whichever way it was measured.

Under the hyperbola D = D_min (1 + B / B_crit) (arXiv 1812.06162), B_crit is the batch at which twice D_min is needed.
The overhead definition (Zhang et al., 2410.21676) names the batch B* that needs a share `overhead` more steps than
perfect scaling from `optimal_batch` B_0. On the same hyperbola steps * B is D, so

    1 + B* / B_crit = (1 + overhead) (1 + B_0 / B_crit)   =>   B_crit = (B* - (1 + overhead) B_0) / overhead.

That translation is ours; it holds as far as the hyperbola does. Tokens of an overhead law are those at its optimal batch,
D_min (1 + B_0 / B_crit): taken as D_min.
"""

import re
from collections.abc import Mapping

import numpy as np

from analysis.predict import predict, predictors, usable

OVERHEAD = 0.2


def find(laws: list[Mapping]) -> Mapping | None:
    """The last usable critical_batch law in params, tokens, tpp, flops or loss whose unit is known."""
    known = {"params", "tokens", "tpp", "flops", "loss"}
    named = [law for law in laws if law["name"] == "critical_batch" and usable(law) and set(predictors(law)) <= known]
    named = [law for law in named if sequence_tokens(law)]
    return named[-1] if named else None


def critical_tokens(law: Mapping, at: Mapping) -> tuple[np.ndarray, str | None]:
    """(B_crit in tokens at `at`, whose tokens are D_min; a line on what was translated, or None)."""
    given = law.get("given") or {}
    length = sequence_tokens(law)
    with np.errstate(over="ignore", invalid="ignore"):
        value = np.asarray(predict(law, at).value) * length
    if given.get("definition") != "overhead":
        return value, None
    overhead = _positive_number(given.get("overhead")) or OVERHEAD
    start = (_positive_number(given.get("optimal_batch")) or 0.0) * length
    critical = np.maximum(value - (1 + overhead) * start, value * 0.05) / overhead
    return critical, f"its batch of {100 * overhead:.3g} % overhead is taken to the hyperbola's B_crit (ours)"


def sequence_tokens(law: Mapping) -> float | None:
    """Tokens in the unit of a batch law: 1 for tokens, L for "sequences of L tokens" or a given context; else None."""
    if law.get("unit") == "tokens":
        return 1.0
    found = re.search(r"of\s+([0-9.]+(?:e\+?[0-9]+)?)", str(law.get("unit") or ""))
    if found:
        return float(found.group(1))
    return _positive_number((law.get("given") or {}).get("context"))


def _positive_number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None
