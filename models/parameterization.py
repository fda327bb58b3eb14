"""Parameterizations: how initialisation, learning rate, weight decay and epsilon of each group of weights, and the
multipliers of the forward pass, change with width and depth.

With m = width / base_width and l = depth / base_depth, s = init_std, a = depth_alpha, w = weight_decay_width_exponent,
every table gives (init std, LR, weight decay, epsilon) as multipliers of the base values, the std absolute.
At m = l = 1 all tables agree, so base hyper-parameters tuned at the base shape mean the same everywhere.

Groups: `embedding` (with tied embeddings the one shared matrix), `hidden` (all matrices of the blocks), `norm` (norm
gains in the blocks, QK-norm included), `final_norm`, `head` (absent with tied embeddings).
Norm gains start at 1 and do not decay (as in Power Lines); all matrices decay, embedding and head by lambda itself. Tau
is that of the hidden matrices. Matrices with another fan-in than width (output and down projections) follow the same
rule: their fan-in is taken to grow in proportion to width.
"""

import math
from dataclasses import dataclass

from models.errors import UserError
from models.shape import LlamaShape

WEIGHT_DECAY_WIDTH_EXPONENT = {"standard": 0.0, "standard_embedding": 0.0, "mup": 0.0, "completep": 1.0}
NAMES = tuple(WEIGHT_DECAY_WIDTH_EXPONENT)


@dataclass(frozen=True)
class Parameterization:
    """A scaling rule and its base. Raises UserError for values that it cannot use. `build` fills in the defaults.

    init_std: std of the matrices at the base width. embedding_lr_multiplier: a factor on the embedding's LR at every
    width. embedding_multiplier, logits_multiplier: tunable constants of the forward pass (alpha_input and alpha_output
    of Power Lines). weight_decay_width_exponent: hidden weight decay is lambda * m^exponent (Power Lines leaves lambda:
    0; Fan et al., 2510.15262: 0.5; Wang & Aitchison, CompleteP: 1). depth_alpha: residual branches are scaled by
    l^-alpha, CompleteP only (0 elsewhere). base_head_dim: where the head size grows with the model, muP's attention
    scale is 1/head_dim, equal to 1/sqrt(head_dim) at the base head size; None: head size is held, 1/sqrt(head_dim).
    """

    name: str
    base_width: int
    base_depth: int
    init_std: float
    embedding_lr_multiplier: float = 1.0
    embedding_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    weight_decay_width_exponent: float = 0.0
    depth_alpha: float = 0.0
    base_head_dim: int | None = None

    def __post_init__(self):
        if self.name not in NAMES:
            raise UserError(f"parameterization={self.name!r} is not known: choose from {', '.join(NAMES)}")
        positive = ("base_width", "base_depth", "init_std", "embedding_lr_multiplier", "embedding_multiplier",
                    "logits_multiplier")  # fmt: skip
        for key in positive + (() if self.base_head_dim is None else ("base_head_dim",)):
            if not 0 < getattr(self, key) < math.inf:
                raise UserError(f"parameterization.{key}={getattr(self, key)!r} must be a finite number above 0")
        if not math.isfinite(self.weight_decay_width_exponent):
            raise UserError("parameterization.weight_decay_width_exponent must be a finite number")
        if self.name == "completep" and not 0.5 <= self.depth_alpha <= 1:
            raise UserError(f"parameterization.depth_alpha={self.depth_alpha:g} must lie in [0.5, 1] (2505.01618)")
        if self.name != "completep" and self.depth_alpha != 0:
            raise UserError(f"parameterization.depth_alpha scales depth under completep only, not under {self.name}")
        if self.name.startswith("standard") and self.base_head_dim is not None:
            raise UserError(f"parameterization.base_head_dim is muP's attention scale: {self.name} has none")

    @classmethod
    def build(
        cls,
        name: str,
        base_width: int,
        base_depth: int,
        *,
        init_std: float | None = None,
        weight_decay_width_exponent: float | None = None,
        depth_alpha: float | None = None,
        **rest,
    ) -> "Parameterization":
        """Defaults by name: init_std 1/sqrt(base_width) (so that a hidden matrix has 1/sqrt(width) at every width),
        weight_decay_width_exponent as in the paper, depth_alpha 1 for completep."""
        if init_std is None and base_width > 0:
            init_std = base_width**-0.5
        if weight_decay_width_exponent is None:
            weight_decay_width_exponent = WEIGHT_DECAY_WIDTH_EXPONENT.get(name, 0.0)
        if depth_alpha is None:
            depth_alpha = 1.0 if name == "completep" else 0.0
        return cls(name, base_width, base_depth, init_std, weight_decay_width_exponent=weight_decay_width_exponent,
                   depth_alpha=depth_alpha, **rest)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """One group's init std (absolute; of norm gains: about 1) and multipliers on base LR, weight decay, epsilon."""

    init_std: float
    lr: float
    weight_decay: float
    eps: float


@dataclass(frozen=True)
class Scales:
    """Multipliers of the forward pass: of the embedding's output, of each residual branch, of the attention scores
    q.k, of the logits."""

    embedding: float
    residual: float
    attention: float
    logits: float


def _standard(s: float, m: float, w: float, tied: bool) -> dict[str, Rule]:
    """Standard parameterization: variance 1/fan-in, one LR for all (Yang et al., 2203.03466, Table 3, "SP").

    A tied matrix is initialised as the head, whose fan-in grows. One LR makes the best LR fall with width.
    """
    return {
        "embedding":  Rule(s * m**-0.5 if tied else s, 1, 1, 1),
        "hidden":     Rule(s * m**-0.5, 1, m**w, 1),
        "norm":       Rule(0, 1, 0, 1),
        "final_norm": Rule(0, 1, 0, 1),
        "head":       Rule(s * m**-0.5, 1, 1, 1),
    }  # fmt: skip


def _standard_embedding(s: float, m: float, w: float, tied: bool) -> dict[str, Rule]:
    """Standard, the embedding's LR times width (Kalra & Barkeshli, 2605.21486): as the best global LR falls as 1/m,
    the embedding's stays put, which is where they find most of muP's advantage. A tied matrix gets that LR whole."""
    table = _standard(s, m, w, tied)
    embedding = table["embedding"]
    return table | {"embedding": Rule(embedding.init_std, m, 1, 1)}


def _mup(s: float, m: float, w: float) -> dict[str, Rule]:
    """muP for Adam (Yang et al., 2203.03466, Table 8) with the head's 1/m as a forward multiplier, so that embedding
    and head have the same rule and can be tied (2505.01618, Table 1). All gradients fall as 1/m, so epsilon does."""
    return {
        "embedding":  Rule(s,           1,   1,    1 / m),
        "hidden":     Rule(s * m**-0.5, 1/m, m**w, 1 / m),
        "norm":       Rule(0,           1,   0,    1 / m),
        "final_norm": Rule(0,           1,   0,    1 / m),
        "head":       Rule(s,           1,   1,    1 / m),
    }  # fmt: skip


def _completep(s: float, m: float, w: float, l: float, a: float) -> dict[str, Rule]:  # noqa: E741
    """CompleteP (Dey et al., 2505.01618, Table 1): muP in width; with residual branches times l^-a, LR in the blocks
    times l^(a-1) (none at a = 1) and epsilon times l^-a; hidden weight decay lambda * m keeps LR * lambda constant."""
    return {
        "embedding":  Rule(s,           1,              1,    1 / m),
        "hidden":     Rule(s * m**-0.5, l**(a - 1) / m, m**w, l**-a / m),
        "norm":       Rule(0,           l**(a - 1),     0,    l**-a / m),
        "final_norm": Rule(0,           1,              0,    1 / m),
        "head":       Rule(s,           1,              1,    1 / m),
    }  # fmt: skip


def rules(shape: LlamaShape, p: Parameterization) -> dict[str, Rule]:
    """Group -> Rule for a model of this shape. The groups are those of `models.llama.group_of`."""
    m, l = _ratios(shape, p)  # noqa: E741
    s, w = p.init_std, p.weight_decay_width_exponent
    if p.name == "standard":
        table = _standard(s, m, w, shape.tied)
    elif p.name == "standard_embedding":
        table = _standard_embedding(s, m, w, shape.tied)
    elif p.name == "mup":
        table = _mup(s, m, w)
    else:
        table = _completep(s, m, w, l, p.depth_alpha)
    e = table["embedding"]
    table["embedding"] = Rule(e.init_std, e.lr * p.embedding_lr_multiplier, e.weight_decay, e.eps)
    if shape.tied:
        del table["head"]
    return table


def scales(shape: LlamaShape, p: Parameterization) -> Scales:
    """Forward multipliers: residual branches l^-depth_alpha, logits 1/m under muP and CompleteP, attention as in
    `Parameterization`."""
    m, l = _ratios(shape, p)  # noqa: E741
    return Scales(
        embedding=p.embedding_multiplier,
        residual=l**-p.depth_alpha,
        attention=shape.head_dim**-0.5 if p.base_head_dim is None else p.base_head_dim**0.5 / shape.head_dim,
        logits=p.logits_multiplier / (1 if p.name.startswith("standard") else m),
    )


def hidden(shape: LlamaShape, p: Parameterization) -> tuple[float, float]:
    """(LR multiplier, weight-decay multiplier) of the hidden matrices: what takes base LR and weight decay to the
    adjusted ones that enter tau."""
    rule = rules(shape, p)["hidden"]
    return rule.lr, rule.weight_decay


def _ratios(shape: LlamaShape, p: Parameterization) -> tuple[float, float]:
    return shape.width / p.base_width, shape.depth / p.base_depth
