"""Parameters and training FLOPs of a decoder, exact and from its shape alone."""

from dataclasses import dataclass

from models.shape import LlamaShape


@dataclass(frozen=True)
class ParamCount:
    """Three conventions, since published laws differ in theirs.

    params: N of hyperlaw, what multiplies activations for every token: blocks, norms, output head; not the input
        embedding. With tied embeddings the shared matrix is the head, so this is the total (as in Power Lines).
    params_total: every weight once. params_non_embedding: blocks and norms only (Kaplan, Step Law, DeepSeek).
    """

    params: int
    params_total: int
    params_non_embedding: int


def count_params(shape: LlamaShape) -> ParamCount:
    """Parameters by convention; equal to the sums over `models.llama.Llama`'s tensors (tested)."""
    attention = 2 * shape.width * (shape.attention_width + shape.kv_width)  # q and o; k and v
    ffn = 3 * shape.width * shape.ffn_width  # gate, up, down
    norms = 2 * shape.width + (2 * shape.head_dim if shape.qk_norm else 0)
    blocks = shape.depth * (attention + ffn + norms) + shape.width  # and the final norm
    matrix = shape.vocab * shape.width
    total = blocks + matrix if shape.tied else blocks + 2 * matrix
    return ParamCount(params=blocks + matrix, params_total=total, params_non_embedding=blocks)


def flops_per_token(shape: LlamaShape) -> int:
    """FLOPs to train on one token: 6 * params + 12 * depth * n_heads * head_dim * context.

    A multiply-accumulate is 2 FLOPs and the backward pass costs twice the forward, so every parameter costs 6:
    matrices, head and norm gains; the embedding is a look-up and free. Attention scores and the sum over values cost
    2 * 2 * context * attention width forward in each layer: counted over the **full** context, not halved for
    causality (the convention of PaLM App. B and of most reported utilisations), and not reduced by grouped queries.
    Softmax, rotary embeddings, activations and the optimizer's update are left out.
    """
    return 6 * count_params(shape).params + 12 * shape.depth * shape.attention_width * shape.context
