"""fp32 matrix products of compiled CPU steps by oneDNN, whose kernels use all of a core's vector width; PyTorch takes MKL's,
which on AMD do not.

PyTorch has oneDNN's fp32 product only as a linear layer of frozen weights (`mkldnn::_linear_pointwise`); here is an
operator of our own that compiles to the same call.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("hyperlaw", "DEF")
_LIBRARY.define("mm(Tensor a, Tensor turned) -> Tensor")


def _meta(a: Tensor, turned: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], turned.shape[0])


def _product(a: Tensor, turned: Tensor) -> Tensor:
    """a (M, K) times the transpose of turned (N, K), fp32."""
    return torch.ops.mkldnn._linear_pointwise(a.contiguous(), turned.contiguous(), None, "none", [], "")


_LIBRARY.impl("mm", _meta, "Meta")
_LIBRARY.impl("mm", _product, "CPU")


def through_onednn(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """`graph` of make_fx with its fp32 matrix products replaced, where this PyTorch has oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return graph
    aten = torch.ops.aten
    for node in graph.graph.find_nodes(op="call_function", target=aten.mm.default):
        a, b = node.args
        if a.meta["val"].dtype == b.meta["val"].dtype == torch.float32:
            with graph.graph.inserting_before(node):
                turned = graph.graph.call_function(aten.t.default, (b,))
                node.replace_all_uses_with(graph.graph.call_function(torch.ops.hyperlaw.mm.default, (a, turned)))
            graph.graph.erase_node(node)
    graph.recompile()
    _lower()
    return graph


def _lower() -> None:
    """Tells the compiler of the operator, once."""
    from torch._inductor.ir import TensorBox
    from torch._inductor.lowering import lowerings, register_lowering
    from torch._inductor.mkldnn_ir import LinearUnary

    operator = torch.ops.hyperlaw.mm.default
    if operator not in lowerings:
        register_lowering(operator, type_promotion_kind=None)(
            lambda a, turned: TensorBox.create(LinearUnary.create(a, turned, None, "none", [], ""))
        )
