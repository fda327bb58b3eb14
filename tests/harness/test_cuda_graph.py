"""Where no graph can be recorded, here for want of a GPU, steps are taken as they are, and one line says so."""

import pytest
import torch

from harness.cuda_graph import GraphedStep


@pytest.mark.skipif(torch.cuda.is_available(), reason="a graph can be recorded here")
def test_without_a_graph_each_step_is_taken_once_and_as_it_is(capsys):
    def step(w, m, v, group, row, fixed, scales, tokens):
        w.add_(row[0] * tokens.sum())
        return torch.stack([w.sum(), row[0]])

    w, m, v, group, fixed, scales = (torch.zeros(2) for _ in range(6))
    graphed = GraphedStep(step)
    for i in range(3):
        tokens = torch.full((2, 3), i)
        assert graphed(w, m, v, group, torch.tensor([0.5]), fixed, scales, tokens)[1] == 0.5
    assert w.tolist() == [9.0, 9.0]  # 0.5 * 6 * (0 + 1 + 2)
    assert capsys.readouterr().err.count("no CUDA graph") == 1
