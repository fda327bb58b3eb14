"""The schema: every key a user may set, with its type and default meaning. Hydra composes YAML onto it (compose.py).

Ratios (tpp, tau, batch in sequences or tokens, warm-up as a fraction or in tokens) stay ratios here; `resolve.py` turns
them into the numbers of a Point. `None` means "not given: derive it".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelConfig:
    """Llama-style decoder (models/llama.py)."""

    name: str = "llama"
    width: int = 64
    depth: int = 2
    head_dim: int | None = None  # width // n_heads where n_heads is given, else 16
    n_heads: int | None = None  # width // head_dim
    n_kv_heads: int | None = None  # n_heads: no grouping
    ffn_width: int | None = None  # ffn_ratio * width, rounded up to a multiple of 8
    ffn_ratio: float | None = None  # 8/3, unless ffn_width is given
    context: int = 64
    tied: bool = True
    qk_norm: bool = False
    z_loss: float = 0.0
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


@dataclass
class ParameterizationConfig:
    """How init, multipliers, learning rate and weight decay follow width and depth (models/parameterization.py)."""

    name: str = "standard"
    base_width: int = 64
    base_depth: int = 2
    init_std: float | None = None  # of matrices at the base width; 1/sqrt(base_width)
    embedding_lr_multiplier: float = 1.0
    embedding_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    weight_decay_width_exponent: float | None = None  # the paper's: 0, completep 1
    depth_alpha: float | None = None  # completep only: 1
    base_head_dim: int | None = None  # mup, completep: where the head size grows with the model


@dataclass
class OptimizerConfig:
    """AdamW; `lr` is the base peak learning rate, before the parameterization's multipliers."""

    name: str = "adamw"
    lr: float = 4e-3
    weight_decay: float | None = 0.1
    weight_decay_mode: str = "coupled"  # coupled: shrink lr*wd (PyTorch); independent: shrink wd*schedule
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float | None = 1.0  # global gradient norm; null: no clipping


@dataclass
class ScheduleConfig:
    """Learning rate as a share of its peak. Warm-up and cooldown are fractions of the run, or tokens."""

    name: str = "linear"  # linear | cosine | wsd | constant
    warmup: float | None = 0.1
    warmup_tokens: float | None = None
    cooldown: float | None = None  # wsd only
    cooldown_tokens: float | None = None
    cooldown_shape: str | None = None  # wsd only: linear | 1-sqrt
    final_ratio: float = 0.0
    batch_ramp: list[Any] | None = None  # [[until_tokens, batch_size], ...] before the nominal batch (harness/ramp.py)


@dataclass
class DataConfig:
    """Where text comes from and how it becomes tokens (harness/data)."""

    name: str = "sotu"  # sotu | python_source | files | hf | markov
    path: str | None = None  # files: a file, a folder or a glob; hf: a dataset name or a local folder
    subset: str | None = None  # hf: configuration name
    split: str = "train"  # hf
    revision: str | None = None  # hf
    text_key: str = "text"  # jsonl, parquet, hf: the column that holds the text
    tokenizer: str = "bytes"  # bytes | bpe | path of a tokenizer.json
    vocab: int | None = None  # bpe: size to train; else only checked
    validation_fraction: float = 0.05  # of documents
    seed: int | None = None  # order of tokens; null: the run's seed
    epochs: float = 1.0  # passes over the training tokens that are allowed
    max_bytes: float | None = None  # stop reading after so much text
    states: int = 64  # markov: size of the alphabet
    tokens: float = 1e7  # markov: length of the corpus
    entropy: float = 2.0  # markov: entropy rate aimed at, nats per token


@dataclass
class ValidationConfig:
    """Validation runs on the same `sequences` sequences for every point, at fractions of the run and at its end."""

    tokens: int = 65536
    fractions: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75])


@dataclass
class SweepConfig:
    """Axes over a base config. Crossed unless listed together under `zip`."""

    name: str = ""
    axes: dict[str, Any] = field(default_factory=dict)  # key: list, or "log2(a, b, n)"
    zip: list[Any] = field(default_factory=list)  # [{key: list, key: list}, ...]: each entry is one axis
    grids: list[Any] = field(default_factory=list)  # [{axes: ..., zip: ...}, ...]: the union of these grids
    filter: list[str] = field(default_factory=list)  # kept where all are true, over the table's columns
    strategy: str = "grid"  # grid | refine | halving: all points; those that narrow the law most; losers stop early
    budget: float | None = None  # training FLOPs, or up to 1 a share of the whole grid's; refine: 0.4
    target: Any = None  # refine: the scale to extrapolate to, {model.width: 512, tpp: 20}; null: 4 x the largest model
    rungs: list[float] = field(default_factory=lambda: [0.25, 0.5])  # halving: shares of the run at which it is decided
    risk: float = 0.05  # halving: chance, for each slice, that what would have been its best point is stopped
    keep: int = 5  # halving: values of each slice that are trained to the end at least
    share: bool = True  # train beginnings that several points have in common once
    extend: bool = False  # extend the grid where an optimum sits at its edge
    extend_target: str | None = None  # the axis that is extended or refined: lr, tau, weight_decay, batch_size
    extend_rounds: int = 3
    analyses: list[str] = field(default_factory=list)  # what `fit` would be run with


@dataclass
class LauncherConfig:
    """Where jobs run. Never part of a point's identity. What only one engine has is refused under another
    (sweeps/engines.py)."""

    name: str = "local"  # local | slurm | ray
    workers: int | None = None  # one per `threads` cores, or per device share; slurm: of each allocation
    threads: int = 1
    points_per_device: int = 1
    devices_per_point: int = 1  # data parallel over so many devices of one host
    parallel: str = "ddp"  # ddp | fsdp
    max_attempts: int = 2
    point_seconds: float | None = None  # training time of one point, all its attempts together, before it is given up
    compile: str = "auto"  # auto | always | never
    lease_seconds: float = 60.0
    # slurm and ray
    gpus: int = 0  # slurm: of each allocation; ray: of the private cluster, 0 as found
    cpus: int | None = None  # slurm: of each allocation; ray: of the private cluster
    # slurm
    points_per_job: int = 8  # points that share one allocation
    max_running: int | None = None  # allocations at once
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None  # limit of an allocation, as sbatch takes it: 4:00:00, 1-0, or minutes
    memory: str | None = None  # of an allocation: 16G
    signal_seconds: int = 120  # before the limit: checkpoint, requeue
    setup: list[str] = field(default_factory=list)  # shell lines before Python
    sbatch: dict[str, Any] = field(default_factory=dict)  # further parameters of sbatch: {constraint: h100}
    # ray
    address: str | None = None  # of a cluster (auto, HOST:PORT); null: a private one on this machine


@dataclass
class TrackingConfig:
    """Trackers read along; the run directory stays the truth."""

    name: str = "none"  # none | wandb
    project: str = "hyperlaw"
    mode: str = "offline"
    entity: str | None = None


@dataclass
class Config:
    """The root. See DESIGN's contracts for the keys typed most."""

    model: ModelConfig = field(default_factory=ModelConfig)
    parameterization: ParameterizationConfig = field(default_factory=ParameterizationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    tpp: float | None = 20.0
    tokens: float | None = None
    tau: float | None = None
    batch_size: int | None = 8  # sequences
    batch_tokens: float | None = None
    micro_batch: int | None = None  # sequences per forward pass; null: the whole batch
    seed: int = 0
    precision: str = "bf16"  # bf16 | fp32
    device: str = "auto"  # auto | cpu | cuda
    checkpoint_seconds: float = 30.0
    curve_points: int = 200  # rows kept in curve.parquet, evenly over the run
    profile: bool = False  # train only: first say where a step's time goes
    keep_weights: bool = False  # leave weights.safetensors in each run directory
    reuse: list[str] | None = None  # runs directories whose finished points are taken; null: those beside a default `out`
    out: str | None = None  # default out/NAME
    runs: str | None = None  # default OUT/runs
    cache: str | None = None  # tokenized data, compiled code, measured rates; default ~/.cache/hyperlaw
