"""benchmarks/gpu.py without a GPU: it says so and writes nothing; its own test on a CPU goes through all but graphs."""

import json

import pytest

from benchmarks import gpu
from models.count import count_params


def test_without_a_gpu_it_says_so_and_leaves_the_figures_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpu.gpu_names.cache_clear()
    try:
        (tmp_path / "gpu.json").write_text("as it was")
        assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 2
    finally:
        gpu.gpu_names.cache_clear()
    said = capsys.readouterr()
    assert "no GPU here" in said.err and said.err.count("\n") == 1 and not said.out
    assert (tmp_path / "gpu.json").read_text() == "as it was"


def test_its_way_is_gone_on_a_cpu(tmp_path):
    assert gpu.main(["--device", "cpu", "--quick", "--json", str(tmp_path / "gpu.json")]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["ratios"]) == {"gpu_tiny_vs_eager", "gpu_tiny_share", "gpu_tiny_share_causal"}
    rates = found["sizes"]["tiny"]["tokens_per_second"]
    assert set(rates) == {"eager", "packed"} and all(len(r) == 2 and min(r) > 0 for r in rates.values())
    assert found["peak_is"] == "measured matrix products" and found["mps"] is False


@pytest.mark.parametrize("size, params", zip(gpu.SIZES, (1e6, 5e6, 25e6, 100e6, 350e6, 1e9), strict=True))
def test_sizes_are_what_they_are_called(size, params):
    assert count_params(size.shape).params == pytest.approx(params, rel=0.1)
    full, causal = gpu.shares(size, 1e6, 989e12)
    assert full * 989e6 == pytest.approx(6 * size.params + 12 * size.depth * size.width * size.context)
    assert full - causal == pytest.approx(6e6 * size.depth * size.width * size.context / 989e12)
