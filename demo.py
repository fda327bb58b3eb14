"""`make demo`: from a sweep of small models to a recipe, and whether the recipe is any good. All of it in out/demo.

Each part is what a user would do from a notebook; `hyperlaw sweep | table | fit | recommend` do the same from a shell.
Run again, it finds what is done and goes on from there.
"""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

OUT = Path(os.environ.get("HYPERLAW_DEMO_OUT", "out/demo")).absolute()
# The target: wider than every model of the sweep, longer than every width it saw, at least 4x the FLOPs of its largest.
TARGET = {"model.width": 64, "tpp": 16}
PARAMETERIZATION = "mup"
# Equal tokens for all widths: what the comparison of learning-rate transfer needs.
EQUAL_TOKENS = "tokens == 409600"
TOKENS_OF_LR_GRIDS = "tokens in [102400, 409600, 819200]"
NEIGHBOURS = [(1, 1), (0.5, 1), (2, 1), (1, 1 / 3), (1, 3)]  # (factor on LR, factor on tau)
PHASES: dict[str, float] = {}


def main() -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    with phase("train the sweep"):
        planned, summary = train(["sweep=demo"])
        if summary.exit_status:
            return stopped(summary)
    with phase("table, laws, figures"):
        table = make_table(planned)
        transfer, laws = fit_laws(table)
        recipe = make_recipe(table)
    with phase("train the recipe and its neighbours"):
        runs, summary, target = train_neighbours(recipe)
        if summary.exit_status and not any(run["loss"] for run in runs):
            return stopped(summary)
    with phase("judge"):
        judged = judge(table, recipe, runs, target)
    report(table, transfer, laws, judged)
    return 0


def train(overrides: list[str], zip_axes: dict | None = None):
    """Plan and run one request into OUT; (planned, summary)."""
    from harness.compose import compose
    from sweeps.launch import prepare_plan, run_plan

    request = compose([*overrides, f"out={OUT}", f"cache={OUT / 'cache'}", *sys.argv[1:]], "sweep")
    if zip_axes:
        request.config.sweep.zip = [zip_axes]
    planned = prepare_plan(request, probe=False)
    print(planned.plan.render(), flush=True)
    summary = run_plan(planned)
    return prepare_plan(request, probe=False), summary  # again: the grid may have been extended


def make_table(planned):
    """OUT/table.csv: the runs of the sweep, and of nothing else that lies in OUT/runs."""
    from analysis.table import read_runs, write_table

    table = read_runs(planned.plan.runs_dir)
    table = table[table.run_id.isin({m.point.id for m in planned.members})].reset_index(drop=True)
    write_table(table, OUT / "table.csv")
    return table


def fit_laws(table):
    """Writes laws and figures; returns (learning rate against width at equal tokens, all laws for the recipe)."""
    from analysis.command import save
    from analysis.fit import fit

    transfer = fit(table, "lr", {"where": EQUAL_TOKENS, "predictors": ["width"]})
    save(transfer, OUT / "laws" / "lr_against_width", OUT / "figures" / "lr_against_width")
    fits = [fit(table, "lr", {"where": TOKENS_OF_LR_GRIDS}), fit(table, "tau", {"where": f"not ({TOKENS_OF_LR_GRIDS})"})]
    for fitted in fits:
        save(fitted, OUT / "laws", OUT / "figures")
    return transfer, fits


def make_recipe(table) -> dict:
    """The recipe of TARGET under the laws of PARAMETERIZATION."""
    from analysis.command import recommend
    from models.count import count_params
    from models.shape import LlamaShape

    row = table.iloc[0]
    shape = {"vocab": int(row.vocab), "context": int(row.context), "tied": bool(row.tied), "head_dim": int(row.head_dim)}

    def count(width: int, depth: int, _: dict) -> int:
        return count_params(LlamaShape.build(width, depth, **shape)).params

    tokens = TARGET["tpp"] * count(TARGET["model.width"], int(row.depth), {})
    target = {"model.width": TARGET["model.width"], "model.depth": int(row.depth), "tokens": tokens}
    return recommend({"laws": OUT / "laws", "parameterization": PARAMETERIZATION, **target}, count)


def train_neighbours(recipe: dict):
    """The recipe and its four neighbours at the target: (runs as in recipe.json, summary, columns of the recipe's run)."""
    from harness.files import read_json

    lr, tau = recipe["recipe"]["lr"]["value"], recipe["recipe"]["tau"]["value"]
    axes = {"optimizer.lr": [lr * a for a, _ in NEIGHBOURS], "tau": [tau * b for _, b in NEIGHBOURS]}
    moved = [word for word in recipe["overrides"] if word.partition("=")[0] not in axes]
    planned, summary = train(["sweep=demo_target", *moved], axes)
    runs = []
    for member, (a, b) in zip(planned.members, NEIGHBOURS, strict=True):
        result = read_json(planned.plan.runs_dir / member.point.id / "result.json") or {}
        role = "recipe" if (a, b) == (1, 1) else "neighbour"
        runs.append({"role": role, "lr": lr * a, "tau": tau * b, "loss": result.get("loss"), "run_id": member.point.id})
    return runs, summary, planned.members[0].point.columns()


def judge(table, recipe: dict, runs: list[dict], target: dict) -> dict:
    """recipe.json: the recipe's excess loss over the best of the five, beside the seed noise."""
    from analysis import plots
    from harness.files import write_json

    noise = seed_noise(table)
    losses = [run["loss"] if run["loss"] is not None else math.inf for run in runs]
    excess = losses[0] - min(losses) if math.isfinite(losses[0]) else None
    if excess is None:
        verdict = "lost"
    elif excess == 0:
        verdict = "won"
    else:
        # Two runs that differ by nothing but luck differ by sqrt(2) of one run's noise.
        verdict = "within noise" if excess <= math.sqrt(2) * noise else "lost"
    sizes = {k: target[k] for k in ("params", "width", "depth", "tokens", "tpp", "flops", "batch_size", "parameterization")}
    times = target["flops"] / float(table.flops.max())
    if times < 4:
        raise SystemExit(f"the target has only {times:.1f}x the FLOPs of the sweep's largest point; make it 4x or more")
    judged = {
        "target": {**recipe["target"], **sizes},
        "recipe": recipe["recipe"],
        "overrides": recipe["overrides"],
        "notes": recipe["notes"],
        "runs": runs,
        "seed_noise": noise,
        "excess_loss": excess,
        "verdict": verdict,
        "flops_over_largest_of_sweep": times,
    }
    write_json(OUT / "recipe.json", judged)
    plots.neighbours(OUT / "figures" / "recipe.png", runs, noise, excess)
    return judged


def seed_noise(table) -> float:
    """Standard deviation of the loss over seeds, pooled over the settings that were trained with more than one at the
    largest scale of the sweep, leaving out those more than 10 % above the best (far from an optimum runs scatter more)."""
    cells = table[(table.status == "done")].groupby(["width", "tokens", "parameterization", "lr", "tau"]).loss
    found = cells.agg(["var", "count", "mean"]).query("count > 1").reset_index()
    found = found[found.tokens * found.width == (found.tokens * found.width).max()]
    found = found[found["mean"] <= 1.1 * found["mean"].min()]
    return float(math.sqrt((found["var"] * (found["count"] - 1)).sum() / (found["count"] - 1).sum()))


def report(table, transfer, fits, judged: dict) -> None:
    """What the demo found, on one screen, and where the files are."""
    from analysis import command

    print("\n== learning rate against width, tokens, batch and tau equal ==")
    print(command.as_text(transfer))
    for fitted in fits:
        print(f"\n== law of {fitted.analysis} ==\n{command.as_text(fitted)}")
    print("\n== what it found ==")
    for law in transfer.laws:
        width = law["parameters"]["width"]
        print(f"best LR ~ width^{width['value']:+.2f} [{width['low']:+.2f} .. {width['high']:+.2f}]  "
              f"under {law['given']['parameterization']}")  # fmt: skip
    for law in (law for law in fits[1].laws if law["name"] == "tau"):
        tpp = law["parameters"]["tpp"]
        print(f"best tau ~ TPP^{tpp['value']:+.2f} [{tpp['low']:+.2f} .. {tpp['high']:+.2f}]")
    target = judged["target"]
    print(f"recipe for {target['params'] / 1e3:.0f}k parameters, {target['tokens'] / 1e6:.1f}M tokens "
          f"({judged['flops_over_largest_of_sweep']:.1f}x the FLOPs of the sweep's largest point):")  # fmt: skip
    for run in judged["runs"]:
        loss = "diverged" if run["loss"] is None else f"{run['loss']:.4f}"
        print(f"  {run['role']:9s}  lr {run['lr']:.5f}  tau {run['tau']:.3f}  loss {loss}")
    excess = judged["excess_loss"]
    print(f"excess loss {'none: diverged' if excess is None else f'{excess:.4f} nats'}, seed noise "
          f"{judged['seed_noise']:.4f}: {judged['verdict']}")  # fmt: skip
    print("seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in PHASES.items())
          + f"; {sum(PHASES.values()):.0f} in all")  # fmt: skip
    print(f"files in {OUT}: runs/, table.csv, laws/laws.json, figures/, recipe.json")


def stopped(summary) -> int:
    print("stopped before the end; run `make demo` again to go on", file=sys.stderr)
    return summary.exit_status


@contextmanager
def phase(name: str):
    begun = time.monotonic()
    print(f"\n-- {name}", flush=True)
    yield
    PHASES[name] = time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main())
