"""The shape of a Llama decoder: all that fixes its weights and its forward pass, nothing of its training."""

import math
from dataclasses import dataclass, fields

from models.errors import UserError

FFN_RATIO = 8 / 3  # SwiGLU has three matrices: 8/3 of the width gives the parameters of a plain 4x MLP (Shazeer 2020)
LARGEST = 2**31  # of any dimension
HEAD_DIM = 16  # gives narrow models several heads; large models take 64 or 128. Held while width grows.


@dataclass(frozen=True)
class LlamaShape:
    """A decoder, fully specified. Raises UserError where no such model exists. `build` derives what is usually derived.

    width: residual stream. n_heads * head_dim: attention width, usually = width. n_kv_heads: key/value heads, each
    shared by n_heads / n_kv_heads query heads. ffn_width: SwiGLU inner width. context: tokens a sequence predicts.
    tied: the embedding is the output head. z_loss: weight of mean(log^2 Z), 0 for none (Wortsman et al., 2309.14322).
    """

    width: int
    depth: int
    head_dim: int
    n_heads: int
    n_kv_heads: int
    ffn_width: int
    vocab: int
    context: int
    tied: bool = False
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    z_loss: float = 0.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and not (_is_int(value) and value >= 1):
                raise UserError(f"model.{field.name}={value!r} must be a whole number of at least 1")
            if field.type is int and value > LARGEST:
                raise UserError(f"model.{field.name} is too large: {LARGEST} at most")
            if field.type is bool and not isinstance(value, bool):
                raise UserError(f"model.{field.name}={value!r} must be true or false")
            if field.type is float and not (_is_finite(value) and (value > 0 or value == 0 and field.name == "z_loss")):
                raise UserError(f"model.{field.name}={value!r} must be a finite number above 0")
        if self.head_dim % 2:
            raise UserError(f"model.head_dim={self.head_dim} must be even: rotary embeddings turn pairs of coordinates")
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"model.n_kv_heads={self.n_kv_heads} must divide model.n_heads={self.n_heads}: query heads share "
                "key/value heads evenly"
            )

    @property
    def attention_width(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.n_kv_heads * self.head_dim

    @classmethod
    def build(
        cls,
        width: int,
        depth: int,
        *,
        vocab: int,
        context: int,
        head_dim: int | None = None,
        n_heads: int | None = None,
        n_kv_heads: int | None = None,
        ffn_width: int | None = None,
        ffn_ratio: float | None = None,
        ffn_multiple: int = 8,
        **rest,
    ) -> "LlamaShape":
        """A shape with the usual relations filled in; what is given is taken as it stands.

        Of head_dim and n_heads one follows from the other by n_heads * head_dim = width; neither given: head_dim 16;
        both given: they stand, whatever the width. n_kv_heads = n_heads. ffn_width = ffn_ratio * width rounded up to
        ffn_multiple, ffn_ratio 8/3. Raises UserError where ffn_width and ffn_ratio are both given or a relation cannot
        hold.
        """
        if not (_is_int(width) and width >= 1):
            raise UserError(f"model.width={width!r} must be a whole number of at least 1")
        head_dim, n_heads = _heads(width, head_dim, n_heads)
        if ffn_width is not None and ffn_ratio is not None:
            raise UserError(f"model.ffn_width={ffn_width} and model.ffn_ratio={ffn_ratio} say the same: give one")
        if ffn_width is None:
            ffn_width = _round_up(width, FFN_RATIO if ffn_ratio is None else ffn_ratio, ffn_multiple)
        kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        return cls(width, depth, head_dim, n_heads, kv_heads, ffn_width, vocab, context, **rest)


def _heads(width: int, head_dim: int | None, n_heads: int | None) -> tuple[int, int]:
    if head_dim is not None and n_heads is not None:
        return head_dim, n_heads  # __post_init__ judges them
    if head_dim is None and n_heads is None:
        head_dim = HEAD_DIM
    name, given = ("head_dim", head_dim) if n_heads is None else ("n_heads", n_heads)
    if not (_is_int(given) and given >= 1 and width % given == 0):
        raise UserError(f"model.{name}={given!r} must divide model.width={width} (or give head_dim and n_heads both)")
    return (head_dim, width // head_dim) if n_heads is None else (width // n_heads, n_heads)


def _round_up(width: int, ratio: float, multiple: int) -> int:
    if not (_is_finite(ratio) and ratio > 0 and _is_int(multiple) and multiple >= 1):
        raise UserError("model.ffn_ratio must be a number above 0 and model.ffn_multiple a whole number of at least 1")
    return multiple * math.ceil(width * ratio / multiple - 1e-9)  # 8/3 * 48 is 128, not 128.00000000000003


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
