"""The columns of the Table: canonical names, which are numbers, and what each means to a slice.

One row is one run. Tokens, FLOPs and parameters are counts; loss is nats per token on validation data; lr and
weight_decay are base values, lr_adjusted and weight_decay_adjusted those of the hidden matrices under the
parameterization.
"""

CANONICAL = (
    "run_id status params params_total params_non_embedding width depth base_width base_depth context tokens tpp "
    "epochs batch_size batch_tokens micro_batch steps lr lr_adjusted weight_decay weight_decay_adjusted "
    "weight_decay_mode tau schedule warmup_tokens optimizer parameterization seed trunk loss train_loss flops "
    "flops_spent device_seconds model_flops_per_second utilisation"
).split()

# Of tables for analysis=critical_batch; of long tables for analysis=curves; of the loss law's form=data_constrained.
FURTHER = ("steps_to_target", "target_loss", "step", "total_steps", "unique_tokens")

TEXT = ("run_id", "trunk", "status", "weight_decay_mode", "schedule", "optimizer", "parameterization")
IDENTIFIERS = ("run_id", "trunk")  # compared as text, also where a reader takes them for numbers
NUMBERS = (*(name for name in CANONICAL if name not in TEXT and name != "seed"), *FURTHER)
POSITIVE = (
    "params params_total params_non_embedding width depth base_width base_depth context tokens tpp batch_size "
    "batch_tokens steps lr lr_adjusted tau flops steps_to_target target_loss total_steps unique_tokens"
).split()

STATUSES = ("pending", "running", "done", "diverged", "pruned", "out_of_memory", "failed")
CENSORED = ("diverged", "pruned")  # ended without a loss: of a pruned run the slice has better ones (halving)
# Words of other trackers for the same things.
STATUS_WORDS = {
    "finished": "done",
    "completed": "done",
    "success": "done",
    "crashed": "failed",
    "killed": "failed",
    "nan": "diverged",
}

# Settings that must be equal within a law: each combination gets a law of its own.
SETTINGS = (
    "parameterization optimizer schedule weight_decay_mode context base_width base_depth data data_fingerprint "
    "tokenizer precision beta1 beta2 eps clip cooldown_shape final_ratio batch_ramp tied qk_norm z_loss init_std "
    "embedding_lr_multiplier"
).split()
# What makes a scale: a law runs across them, a slice holds them.
SCALE = "params width depth head_dim n_heads n_kv_heads ffn_width vocab".split()
# Columns that say what came out, or follow from others: no slice needs to hold them.
OUTCOMES = (
    "run_id status seed data_seed trunk loss train_loss flops_spent device_seconds micro_batch flops steps tpp tokens "
    "epochs model_flops_per_second utilisation "
    "batch_size batch_tokens params_total params_non_embedding lr_adjusted weight_decay_adjusted warmup_tokens "
    "cooldown_tokens steps_to_target target_loss"
).split()
# Columns of other trackers that are never settings.
LABELS = (
    "id name run run_name display_name group tags notes url host hostname node gpu device user created created_at "
    "runtime diverged accuracy perplexity grad_norm val_loss eval_loss final_loss"
).split()


def is_mark(name: object) -> bool:
    """Whether a column is likely a mark of runs that are listed twice: no setting, whatever it holds."""
    return "duplicate" in str(name).lower()
