"""Laws of hyper-parameters from papers, by name, in the form of laws.json: `PUBLISHED["power_lines"].laws`.

Each law says where it stands in its paper, its units, how it counts parameters and FLOPs (`counts_params`,
`counts_flops`: convention.py converts), and under `memory` which of its numbers were recalled and not read in
the paper: those are to be checked before anything is built on them. What ran under other settings (`given`) than a
reader's own sweep answers another question; `disagree.py` says so beside each comparison.

Traps. Batches: Power Lines counts sequences of 2048 tokens, Step Law and DeepSeek tokens. Parameters: Power Lines counts
the output head (its embeddings are tied, so that is the total), Step Law and DeepSeek leave the vocabulary out.
DeepSeek's compute is C = M D, M the non-embedding FLOPs per token with attention, not 6 N D. LR: Step Law and DeepSeek
give the one LR of a standard parameterization, Power Lines and muP a base LR at a base width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from analysis.errors import UserError, nearest


@dataclass(frozen=True)
class Published:
    """name: as in published=NAME. laws: LAWs, with `published`, `equation`, `memory` beside their usual keys.
    conventions: what a reader must know before comparing."""

    name: str
    title: str
    arxiv: str
    conventions: str
    laws: tuple[dict, ...]

    @property
    def citation(self) -> str:
        return f"{self.title} (arXiv {self.arxiv})"


def _law(name: str, coefficient: float | None, exponents: Mapping[str, tuple | float], unit: str, **extra) -> dict:
    """A LAW; an exponent is its value, or (value, low, high)."""
    triples = {key: each if isinstance(each, tuple) else (each, None, None) for key, each in exponents.items()}
    ends = {"coefficient": (coefficient, None, None), **triples}
    return {
        "analysis": "published",
        "name": name,
        "form": " * ".join(["coefficient", *(f"{key}^{key}" for key in exponents)]),
        "unit": unit,
        "parameters": {key: dict(zip(("value", "low", "high"), each, strict=True)) for key, each in ends.items()},
        "predictors": list(exponents),
        "method": "published",
        "memory": [],
        **extra,
    }


_POWER_LINES = {"parameterization": "mup", "base_width": 256, "optimizer": "adamw", "schedule": "linear", "context": 2048}
_STEP_LAW = {"parameterization": "standard", "optimizer": "adamw", "schedule": "cosine", "context": 2048}
_DEEPSEEK = {"parameterization": "standard", "optimizer": "adamw", "schedule": "multi_step", "context": 4096}
_BJORCK = {"optimizer": "adamw", "schedule": "cosine", "context": 2048}

PUBLISHED: dict[str, Published] = {}


def _add(name: str, title: str, arxiv: str, conventions: str, *laws: dict, **common) -> None:
    own = tuple({**law, **common, "analysis": name, "published": name} for law in laws)
    PUBLISHED[name] = Published(name, title, arxiv, conventions, own)


_add(
    "power_lines",
    "Power Lines, Bergsma et al., NeurIPS 2025",
    "2505.13738",
    "tau from the adjusted peak LR of the hidden matrices and coupled weight decay; batches in sequences of 2048 tokens, D "
    "in tokens; N total with tied embeddings; muP from width 256, linear decay to zero, SlimPajama, 111M to 3.3B "
    "parameters. The LR is not a law: base LR 0.0162 throughout. The three coefficients are recalled, not read; they give "
    "the paper's tau 0.21 and batch 252 at 610M and 20 tokens per parameter as 0.2235 and 221 to 223.",
    _law("tau", 1.084, {"tpp": (-0.527, -0.529, -0.507)}, "share of the training tokens", r2=0.975,
         equation="tau_opt = 1.084 TPP^-0.527", memory=["coefficient"]),
    _law("batch_size", 0.0306, {"tokens": (0.383, 0.367, 0.391)}, "sequences of 2048 tokens", r2=0.984,
         equation="B_opt = 0.0306 D^0.383", memory=["coefficient"]),
    # Its bootstrap interval (0.491, 0.526) is over more points than the fit and leaves 0.462 out: none is given here.
    _law("critical_batch", 0.0471, {"tokens": 0.462}, "sequences of 2048 tokens", r2=0.940,
         equation="B_crit = 0.0471 D_min^0.462", memory=["coefficient"]),
    given={**_POWER_LINES, "definition": "hyperbola"},
    held={"lr": 1.62e-2},
    range={"params": {"low": 1.11e8, "high": 3.3e9}, "tpp": {"low": 20.0, "high": 1280.0}},
    counts_params="with_head",
)  # fmt: skip

_add(
    "step_law",
    "Step Law, Li et al., 2025",
    "2503.04715",
    "batches in tokens; N without vocabulary (neither embedding nor head); one LR for all matrices (standard "
    "parameterization) with the batch tuned together with it; cosine to a fixed lowest LR (1e-5, recalled), which changes "
    "the sign of LR against D: under decay to zero LR falls with D at a fixed batch.",
    _law("lr", 1.79, {"params": -0.713, "tokens": 0.307}, "peak learning rate",
         equation="eta = 1.79 N^-0.713 D^0.307"),
    _law("batch_size", 0.58, {"tokens": 0.571}, "tokens", equation="B = 0.58 D^0.571"),
    given=_STEP_LAW,
    range={"params": {"low": 5.9e7, "high": 1.0e9}, "tokens": {"low": 2.0e9, "high": 1.0e11}},
    counts_params="non_embedding",
)  # fmt: skip

_add(
    "deepseek",
    "DeepSeek LLM, Bi et al., 2024",
    "2401.02954",
    "in compute C = M D, M the non-embedding FLOPs per token with attention over the whole context; batches in tokens; "
    "one LR (standard parameterization); LR in three steps (100, 31.6, 10 %). Fitted on near-optimal points, all near the "
    "compute-optimal ratio of tokens to parameters: nothing is said about others. Context recalled.",
    _law("lr", 0.3118, {"flops": -0.1250}, "peak learning rate", equation="eta = 0.3118 C^-0.1250"),
    _law("batch_size", 0.2920, {"flops": 0.3271}, "tokens", equation="B = 0.2920 C^0.3271"),
    given=_DEEPSEEK,
    counts_flops="non_embedding",
)

_add(
    "bjorck",
    "Scaling Optimal LR Across Token Horizons, Bjorck et al., 2024",
    "2409.19913",
    "exponents only, the constant depends on the model: usable relative to an anchor, an optimum of LR that was measured. "
    "At a fixed batch; the exponent of D is 0.3 to 0.7 for single sizes; 50M to 2.7B parameters, 25B to 800B tokens. "
    "Schedule and context recalled.",
    _law("lr", None, {"params": -0.23, "tokens": -0.32}, "peak learning rate, relative to an anchor",
         equation="eta = c N^-0.23 D^-0.32, c unknown"),
    given=_BJORCK,
    range={"params": {"low": 5.0e7, "high": 2.7e9}, "tokens": {"low": 2.5e10, "high": 8.0e11}},
    counts_params="with_head",
)  # fmt: skip


def named(words: str | Iterable[str] | None) -> list[Published]:
    """The entries that `published=` names: a name, several with commas, or a list. Raises UserError for unknown ones."""
    if words is None or words is False:
        return []
    parts = words.strip().strip("[]").split(",") if isinstance(words, str) else [str(word) for word in words]
    result = []
    for name in dict.fromkeys(part.strip() for part in parts):
        if name not in PUBLISHED:
            raise UserError(f"published={name or words}: no such published law{nearest(name, PUBLISHED)}")
        result.append(PUBLISHED[name])
    return result


def as_laws(entries: Iterable[Published]) -> list[dict]:
    """Their laws for a recipe, of several of one name the first entry's last, where `recommend` takes it."""
    return [dict(law) for entry in reversed(list(entries)) for law in entry.laws]
