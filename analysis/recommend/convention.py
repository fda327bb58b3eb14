"""The target in a published law's own way of counting.

    N without vocabulary = params - vocab * width          (params counts the output head once)
    M = 6 N without vocabulary + 12 depth * width * context,   C = M D     (DeepSeek, arXiv 2401.02954, section 3)

Where vocabulary, width or depth of the target are not known, N with the head and 6 N D stand in, and a line says so.
"""

from collections.abc import Mapping

import numpy as np

from analysis.predict import predictors


def at_target(law: Mapping, values: Mapping, notes: list[str] | None = None) -> Mapping:
    """`values` (params, tokens, tpp, flops, ...) as this law counts them; the same for a law of one's own."""
    result = dict(values)
    lines: list[str] = []
    if law.get("counts_params") == "non_embedding" or law.get("counts_flops") == "non_embedding":
        bare = _without_vocabulary(values)
        if bare is None:
            lines.append("its N is without vocabulary, the target's N with the head (vocabulary unknown)")
        else:
            result["params"] = bare
            result["tpp"] = values["tokens"] / bare
        if law.get("counts_flops") == "non_embedding":
            per_token = 6 * result["params"]
            if values.get("width") and values.get("depth") and values.get("context"):
                per_token = per_token + 12 * values["depth"] * values["width"] * values["context"]
            else:
                lines.append("its FLOPs without attention (width, depth or context unknown)")
            result["flops"] = per_token * values["tokens"]
    if notes is not None and {"params", "tpp", "flops"} & set(predictors(law)):
        notes += [f"the {law.get('published') or ''} {law['name']} law: {line}." for line in lines]
    return result


def _without_vocabulary(values: Mapping) -> float | None:
    if not (values.get("vocab") and values.get("width")):
        return None
    bare = values["params"] - values["vocab"] * values["width"]
    return bare if np.all(bare > 0) else None
