"""What other trackers call the columns of the Table.

A name is read in parts: `config.optimizer.lr` is the entry lr of the group optimizer of the run's config. Config says
what was asked for, a summary what was logged last; of a value that moves in training (LR, weight decay, batch) only the
config says the peak, so a logged one is never taken. Names parted by a slash (`train/lr`) are logged.
"""

import re
from dataclasses import dataclass

CONFIG, PLAIN, LOGGED = "config", "plain", "logged"
ROLES = {"config": CONFIG, "cfg": CONFIG, "hparams": CONFIG, "hyperparameters": CONFIG, "args": CONFIG,
         "summary": LOGGED, "summary_metrics": LOGGED, "metrics": LOGGED, "history": LOGGED}  # fmt: skip
# Groups of a nested config whose entries are named by themselves (optimizer.lr, model.n_layer).
GROUPS = set(
    "optimizer optim opt model arch architecture network net train training trainer data dataset dataloader schedule "
    "scheduler lr_scheduler hp run experiment general".split()
)

NAMES = {
    "run_id": "run_id id run",
    "status": "status state",
    "params": "params n_params num_params n_parameters num_parameters parameters param_count model_params",
    "params_total": "params_total total_params n_params_total num_total_params",
    "params_non_embedding": "params_non_embedding non_embedding_params n_params_non_embedding num_non_embedding_params",
    "width": "width d_model n_embd n_embed hidden_size hidden_dim model_dim embed_dim emb_dim",
    "depth": "depth n_layer n_layers num_layers num_hidden_layers",
    "base_width": "base_width mup_base_width",
    "base_depth": "base_depth",
    "context": "context context_length ctx_len n_ctx block_size seq_len seq_length sequence_length max_seq_len "
    "max_seq_length train_seq_len",
    "tokens": "tokens total_tokens train_tokens num_tokens n_tokens training_tokens num_train_tokens",
    "tpp": "tpp tokens_per_param tokens_per_parameter token_param_ratio",
    "epochs": "epochs num_epochs n_epochs num_train_epochs",
    "batch_size": "batch_size global_batch_size global_bsz train_batch_size global_train_batch_size",
    "batch_tokens": "batch_tokens batch_size_tokens batch_size_in_tokens global_batch_tokens tokens_per_batch "
    "tokens_per_step",
    "micro_batch": "micro_batch micro_batch_size per_device_train_batch_size per_device_batch_size device_batch_size",
    "steps": "steps max_steps num_steps n_steps total_steps train_steps num_train_steps training_steps max_iters "
    "n_iters num_iterations train_iters",
    "lr": "lr learning_rate peak_lr max_lr lr_peak peak_learning_rate base_lr lr_base",
    "lr_adjusted": "lr_adjusted",
    "weight_decay": "weight_decay wd adam_weight_decay adamw_weight_decay",
    "weight_decay_adjusted": "weight_decay_adjusted",
    "weight_decay_mode": "weight_decay_mode",
    "tau": "tau",
    "schedule": "schedule schedule_name schedule_type lr_schedule lr_scheduler scheduler scheduler_name scheduler_type "
    "lr_scheduler_type lr_schedule_type lr_decay_style",
    "warmup_tokens": "warmup_tokens",
    "optimizer": "optimizer optim optimizer_name optimizer_type optim_name",
    "parameterization": "parameterization parametrization parameterisation parameterization_name",
    "seed": "seed random_seed rng_seed global_seed",
    "trunk": "trunk",
    "loss": "loss val_loss valid_loss validation_loss eval_loss final_loss final_val_loss final_eval_loss "
    "final_validation_loss loss_val loss_valid loss_validation loss_eval eval_val_loss lm_loss_validation",
    "train_loss": "train_loss training_loss loss_train final_train_loss train_lm_loss",
    "flops": "flops train_flops training_flops total_flops total_flos",
    "device_seconds": "device_seconds",
    # settings and labels that analyses know by name
    "data": "data dataset dataset_name data_name",
    "beta1": "beta1 adam_beta1 beta_1",
    "beta2": "beta2 adam_beta2 beta_2",
    "eps": "eps adam_eps adam_epsilon",
    "created": "created created_at",
    "runtime": "runtime",
    "user": "user",
    "tags": "tags",
    "notes": "notes",
    "group": "group",
    "hostname": "hostname host",
}  # fmt: skip
SECOND = {  # taken where nothing better is there
    "run_id": "name run_name display_name wandb_id",
    "loss": "best_val_loss best_loss min_val_loss best_eval_loss val_loss_min test_loss",
    "tokens": "tokens_seen tokens_processed consumed_tokens throughput_total_tokens num_input_tokens_seen",
    "params": "model_size size",
    "depth": "layers",
    "width": "dim",
    "lr": "max_learning_rate",
    "flops": "compute",
}
UNSURE = {  # names of two things: asked back, never guessed
    "total_batch_size": "sequences (columns.batch_size=) or tokens (columns.batch_tokens=)?",
    "bs": "sequences (columns.batch_size=) or tokens (columns.batch_tokens=)?",
    "n": "parameters (columns.params=)?",
    "d": "tokens (columns.tokens=)?",
    "b": "sequences (columns.batch_size=) or tokens (columns.batch_tokens=)?",
    "c": "FLOPs (columns.flops=)?",
    "min_lr": "the schedule's end, not its peak; the peak is columns.lr=",
    "num_samples": "sequences seen: tokens are these times the context",
}
# a config does not hold them; what moves in training follows
OUTCOMES = ("loss", "train_loss", "status")
MOVES = ("lr", "lr_adjusted", "weight_decay", "weight_decay_adjusted", "batch_size", "batch_tokens", "context")

SPELLED = {name: (canonical, 0) for canonical, names in NAMES.items() for name in names.split()}
SPELLED |= {name: (canonical, 1) for canonical, names in SECOND.items() for name in names.split()}
VALIDATION = {"val", "valid", "validation", "eval", "evaluation"}


@dataclass(frozen=True)
class Reading:
    """What a column's name says: the canonical column (None: none), how good a name it is (0 best), where it was
    written down, and a question to the reader where the name alone cannot tell."""

    canonical: str | None
    rank: int
    role: str
    question: str | None = None


def read(name: str, role: str | None = None) -> Reading:
    """The reading of one column name; role where the file format says it."""
    parts = [_snake(part) for part in re.split(r"[./]", str(name).strip())]
    if len(parts) > 1 and parts[0] in ROLES:
        role = role or ROLES[parts[0]]
        parts = parts[1:]
    if role is None:
        role = LOGGED if "/" in str(name) else PLAIN
    joined = "_".join(part for part in parts if part)
    canonical, rank = SPELLED.get(joined, (None, 0))
    if canonical is None and len(parts) > 1 and parts[-1] == "loss" and VALIDATION & set(parts[:1]) and len(parts) == 2:
        canonical, rank = "loss", 0
    if canonical is None and len(parts) > 1 and set(parts[:-1]) <= GROUPS and role != LOGGED:
        canonical, rank = SPELLED.get(parts[-1], (None, 0))
        joined = parts[-1]
        if canonical in OUTCOMES or (canonical in ("run_id", "tags", "notes")):  # model.name is no name of a run
            canonical = None
    if canonical is None:
        return Reading(None, 0, role, UNSURE.get(joined))
    if role == CONFIG and canonical in (*OUTCOMES, "run_id") and joined != "run_id":
        return Reading(None, 0, role)
    if role == LOGGED and canonical in MOVES:
        return Reading(None, 0, role, f"what was logged last, not the peak; if it is, columns.{canonical}={name}")
    return Reading(canonical, rank, role)


def _snake(part: str) -> str:
    part = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part.strip()).lower()
    return re.sub(r"[^a-z0-9]+", "_", part).strip("_")
