"""One point of a sweep as a user would train it: a script of one file and a model, one process per point.

    python benchmarks/user_train.py width=32 lr=0.004 ...    (the keys: user_train.yaml)

Eager, fp32, two threads and fused AdamW; `tuned=true threads=1`: bf16 autocast and the compiled model, the best of what a
hand can do for a single point. Linear decay after warm-up. No import of ours but the plain model's.
"""

import json
import time

import hydra
import numpy as np
import torch
from plain import Llama, Shape, adamw, train_step

CHUNK = 2**12  # tokens of a validation pass: what stays in a core's cache


def windows(tokens, starts, context):
    return torch.from_numpy(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))


def share(t, steps, warmup):
    """Of the peak learning rate at step t = 0 ... steps - 1."""
    return (t + 1) / warmup if t < warmup else 1 - (t - warmup) / max(steps - warmup, 1)


@hydra.main(version_base=None, config_path=".", config_name="user_train")
def main(c):
    torch.set_num_threads(c.threads)
    torch.manual_seed(0)
    shape = Shape(c.width, c.depth, c.heads, c.ffn_width, c.vocab, c.context, c.fused_attention)
    model = Llama(shape)
    if c.init:
        model.load_state_dict(torch.load(c.init, weights_only=True))
    optimizer = adamw(model, c.lr, c.weight_decay, tuple(c.betas), c.eps)
    run = torch.compile(model, dynamic=False) if c.tuned else model
    cast = torch.autocast("cpu", torch.bfloat16, enabled=c.tuned)
    tokens, order = np.memmap(f"{c.data}/train.bin", np.uint8, "r"), np.load(f"{c.data}/order.npy", mmap_mode="r")
    held_out = windows(np.memmap(f"{c.data}/validation.bin", np.uint8, "r"), np.load(f"{c.data}/held_out.npy"), c.context)
    validate_at = {min(max(round(f * c.steps), 1), c.steps) for f in c.validate}
    ready, first, validating, losses = time.time(), 0.0, 0.0, []
    batch, steps, warmup, lr, clip, context = c.batch, c.steps, c.warmup, c.lr, c.clip, c.context  # hydra's keys are slow
    begun = time.perf_counter()
    for t in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * share(t, steps, warmup)
        batch_tokens = windows(tokens, order[t * batch : (t + 1) * batch], context)
        loss = train_step(run, optimizer, batch_tokens, clip, cast)
        if t == 0:
            first = time.perf_counter() - begun
        if t % 100 == 0:
            print(f"step {t}: loss {loss.item():.4f}")
        if t + 1 in validate_at:
            mark = time.perf_counter()
            with torch.no_grad(), cast:
                parts = held_out.split(CHUNK // context)
                mean = sum(run(p[:, :-1], p[:, 1:]).item() * len(p) for p in parts) / len(held_out)
            losses.append([t + 1, mean])
            validating += time.perf_counter() - mark
    seconds = {"first": first, "validate": validating, "all": time.perf_counter() - begun}
    with open(c.result, "w") as file:
        json.dump({"loss": losses[-1][1], "validation": losses, "ready": ready, "seconds": seconds}, file)


if __name__ == "__main__":
    main()
