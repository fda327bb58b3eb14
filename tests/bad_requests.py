"""Random bad requests (test_bad_input.py): command lines, each with one thing wrong, and sweep files."""

from hypothesis import strategies as st

from harness.compose import known_keys
from harness.resolve import RELATIONS

DATA = ["data=markov", "data.tokens=20000", "data.states=16", "data.entropy=1.5"]
TINY = [*DATA, "model.width=16", "model.depth=1", "model.head_dim=8", "model.context=16", "batch_size=4", "tokens=3200",
        "validation.tokens=512", "launcher.compile=never", "device=cpu"]  # fmt: skip


def without(given, bad):
    """`given` less the keys that `bad` sets, and the other sides of them."""
    keys = {word.partition("=")[0] for word in bad}
    keys |= {b if a in keys else a for a, b in RELATIONS if keys & {a, b}}
    return [word for word in given if word.partition("=")[0] not in keys]


# ---- bad words of a point


def words(*choices):
    return st.sampled_from([c if isinstance(c, list) else [c] for c in choices])


def pairs(keys, values):
    return st.tuples(st.sampled_from(keys), values).map(lambda kv: [f"{kv[0]}={kv[1]}"])


names = st.from_regex(r"[a-z_]{1,10}(\.[a-z_]{1,10})?", fullmatch=True).filter(lambda k: k not in known_keys())
INTS = ["model.width", "model.depth", "model.context", "model.head_dim", "batch_size", "seed", "validation.tokens",
        "parameterization.base_width", "launcher.threads", "curve_points", "data.states"]  # fmt: skip
FLOATS = ["optimizer.lr", "tpp", "tau", "optimizer.eps", "optimizer.clip", "schedule.warmup", "data.epochs", "tokens",
          "parameterization.init_std", "checkpoint_seconds", "model.z_loss", "batch_tokens"]  # fmt: skip
ABOVE_0 = ["model.width", "model.depth", "model.context", "model.head_dim", "model.n_kv_heads", "batch_size",
           "micro_batch",
           "curve_points", "parameterization.base_depth", "launcher.workers", "launcher.max_attempts"]  # fmt: skip
POSITIVE = ["optimizer.lr", "tpp", "tau", "tokens", "batch_tokens", "optimizer.eps", "data.epochs", "model.rope_theta",
            "parameterization.init_std", "launcher.lease_seconds", "parameterization.embedding_multiplier"]  # fmt: skip
FRACTIONS = ["schedule.warmup", "schedule.final_ratio", "data.validation_fraction", "optimizer.beta1",
             "optimizer.beta2"]
impossible = st.one_of(st.floats(max_value=-1e-300), st.sampled_from(["nan", "inf", "-inf", "1" + "0" * 400]))
ODD = ["abc", "[1,2]", "{a: 1}", "", "'quoted'", "1.5.2", "0x", "${nope}", "${oc.env:NOPE_NOT_SET}", "９"]

in_schema = st.one_of(  # found while composing
    st.tuples(names, st.sampled_from(["1", "null", "a,b", ""])).map(lambda kv: ["=".join(kv)]),
    pairs(INTS, st.sampled_from([*ODD, "1.5", "1e3", "null-"])),
    pairs(FLOATS, st.sampled_from(ODD)),
    pairs(["model.tied", "model.qk_norm", "sweep.extend"], st.sampled_from(["perhaps", "[true]", "2.5.1", "{}"])),
    pairs(["model", "optimizer", "schedule", "data", "launcher", "tracking", "parameterization", "sweep"],
          st.from_regex(r"[a-z]{0,8}x", fullmatch=True)),  # fmt: skip
    st.sampled_from(RELATIONS).map(lambda pair: [f"{pair[0]}=8", f"{pair[1]}=16"]),
    words("model.width", "=5", "a b=3", "--", "-x", "--dryrun", "~tpp", "größe=3", "optimizer.lr=1e-3,",
          "optimizer.lr='",
          "model.width=[[[", "model.width=)", "hydra.run.dir=x", "sweep.axes={seed: [1]}", "seed=interval(0,1)",
          "seed=glob(*)", "seed=" + "9" * 5000, "model.width=" + "[" * 2000 + "]" * 2000, "model@x=llama",
          ["--config-dir", "missing"], ["--config-dir="]),  # fmt: skip
)
in_resolving = st.one_of(
    pairs(ABOVE_0, st.integers(max_value=0)),
    pairs(POSITIVE, st.one_of(impossible, st.just("0"))),
    pairs(FRACTIONS, st.one_of(impossible, st.floats(min_value=1.001, allow_infinity=False))),
    pairs(["tokens", "tpp"], st.floats(min_value=1e6, allow_nan=False)),
    pairs(["model.width", "batch_size", "model.context", "model.depth", "seed"],
          st.integers(30, 400).map(lambda n: "8" * n)),
    words("model.n_heads=0", "model.head_dim=3", "model.n_kv_heads=7", "model.name=gpt", "tpp=null", "batch_size=null",
          "tau=1e-320", "device=tpu", "precision=fp64", "optimizer.name=sgd", "schedule.name=step",
          "launcher.name=pbs", "schedule.cooldown=0.5", ["schedule=wsd", "schedule.cooldown=0.95"],
          "tracking.mode=sideways", "tokens=1", "launcher.compile=maybe", "validation.fractions=[2]",
          "validation.tokens=3", "batch_tokens=17", "out=text.txt", "runs=text.txt/runs", "cache=noise",
          "data.path=text.txt", "data.tokens=1e18", "data.entropy=9", "data.states=1", "data.states=99999999",
          "sweep.extend_target=width", "sweep.zip=[{seed:[1,2],data.seed:[3]}]", "sweep.zip=[3]",
          "sweep.grids=[{axes:3}]", "sweep.grids=[4]", "sweep.grids=[{axes:{seed:[]}}]", "sweep.filter=['loss <']",
          "sweep.filter=['no_such > 1']", "sweep.filter=['params > 1e30']", "parameterization.depth_alpha=3"),  # fmt: skip
)
in_preparing = words(
    *(["data=files", f"data.path={p}"] for p in ("missing", "nothing", "*.nope", "noise", "noise.jsonl",
                                                 "noise.txt.gz", "", "empty.txt", "empty.jsonl", "page.jsonl",
                                                 "page.json", "cut.parquet",
                                                 "noise.parquet", "t.parquet", "~no_such_user/x")),
    *(["data=files", "data.path=text.txt", f"data.tokenizer={t}"] for t in ("missing", "noise.json", "page.json",
                                                                            "bpe")),
    ["data=files", "data.path=text.txt", "data.vocab=7"], ["data=files", "data.path=text.txt", "data.max_bytes=-1"],
    "data=files", "data=hf", "data.name=nope",
)  # fmt: skip

# ---- bad sweep files

RANGES = ["log2(1, 2)", "log2(a, b, 3)", "log2(1, 2, 0)", "log2(1, 2, 2.5)", "log2(1, 1e9, 3)", "geom(0, 1, 3)",
          "log3(1, 2, 3)",
          "log2(1, 2, 1e9)", "linear(nan, 1, 2)", "log2(1, 2, 3", "[]", "{a: 1}", "", "null", "[[], []]"]  # fmt: skip
sweep_files = st.one_of(
    st.sampled_from(["sweep: {axes: {seed: [1", "a: b: c", "\t- x\n", "sweep: *nope", "- 1\n- 2\n", "just words", "5",
                     "[]", "sweep: 5", "sweep: [1]", "sweep: {axes: [1, 2]}", "sweep: {zip: {seed: [1]}}",
                     "defaults: 3\n", "defaults:\n  - override /data: nope\n", "defaults:\n  - override /nope: sotu\n",
                     "model: 5\n", "tokens: 10\ntpp: 5\n", "tokens: 10\nsweep: {axes: {tpp: [1, 2]}}",
                     "sweep: {axes: {3: [1]}}", "sweep: {axes: {tau: [1], optimizer.weight_decay: [1]}}",
                     "seed: 1\nsweep: {axes: {seed: [1]}}", "sweep: {axes: {seed: [0]}, zip: [{seed: [1]}]}",
                     "sweep: {axes: {sweep: [demo]}}", "sweep: {axes: {model: [{width: 3}]}}",
                     "sweep: {axes: {out: [a, 5, {b: c}]}}",
                     "x: !!python/name:os.x"]),
    names.map(lambda key: f"{key}: 3\n"),
    names.map(lambda key: f"sweep: {{axes: {{{key}: [1, 2]}}}}"),
    names.map(lambda key: f"sweep: {{{key}: [1, 2]}}"),
    st.sampled_from(RANGES).map(lambda text: f"sweep: {{axes: {{optimizer.lr: '{text}'}}}}"),
    st.sampled_from(RANGES[10:]).map(lambda text: f"sweep: {{axes: {{seed: {text}}}}}"),
    st.tuples(st.integers(1, 4), st.integers(5, 8)).map(
        lambda n: f"sweep: {{zip: [{{seed: {list(range(n[0]))}, data.seed: {list(range(n[1]))}}}]}}"),
    st.sampled_from(["loss >", "nope > 1", "params", "__import__('os')", "params > 1e30", "'a' < params"]).map(
        lambda text: f'sweep: {{axes: {{seed: [1, 2]}}, filter: ["{text}"]}}'),
    st.binary(min_size=1, max_size=40).map(lambda b: b"\xff\xfe\x00" + b),
)  # fmt: skip

# ---- bad words of an analysis

tables = st.sampled_from(["missing.csv", "nothing", "", "noise.csv", "noise.parquet", "empty.csv", "empty.parquet",
                          "page.csv",
                          "page.parquet", "header.csv", "cut.parquet", "noise", "text.txt"])  # fmt: skip
conditions = st.one_of(
    st.sampled_from(["params <", "nope > 1", "params", "params + 1", "open('x')", "params > 'a'", "lr = 3", "(",
                     "params in 3", "kind > 3", "9**9**9 > lr", "lambda: 1", "params.lr > 1", "lr > 1e9",
                     "kind == 'ü'", "`",
                     "lr[0] > 1"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1,
            max_size=12).map(lambda t: f"lr > ) {t}"),
)  # fmt: skip
options = st.one_of(
    words("estimator=best", "level=5", "level=nan", "bootstrap=-1", "bootstrap=1e30", "window={a:1}", "predictors=lr",
          "by=3", "predictors=[nope]", "predictors={nope:[lr]}", "predictors=[kind]", "heldout=[1]", "seed=-1",
          "hold=width", "unit=km", "columns=5", ["columns=5", "columns.lr=lr"], "columns.params=nope",
          "columns.parms=N", "columns.loss=kind", "level", "columns.=3", ["columns.lr=lr", "columns.lr=loss"],
          "profile=[width]", "out=text.txt", "out=text.txt/laws", "out=",
          "runs=runs", "--dry-run", "seed=" + "9" * 5000, "by=[[[", "heldout=lr > (", "tau=3", "=3"),
    names.map(lambda key: [f"{key}=1"]),
    conditions.map(lambda text: [f"where={text}"]),
)  # fmt: skip
analyses = words(  # one bad option of each other analysis
    *(["analysis=loss", o] for o in ("form=best", "select=mean", "delta=-1", "delta=x", "fixed={Z:1}", "fixed=3",
                                     "flops=[-1]", "flops=[x]", "bootstrap=-1", "predictors=[nope]", "predictors=loss")),
    *(["analysis=isoflop", o] for o in ("estimator=best", "window=2", "tolerance=2", "select=mean", "weights=all",
                                        "approach3=perhaps")),
    *(["analysis=envelope", o] for o in ("envelope=box", "bins=3", "points=some", "edges=cut", "columns.run_id=nope")),
    *(["analysis=critical_batch", o] for o in ("definition=best", "overhead=0", "overhead=x", "optimal_batch=-1",
                                               "targets=0", "targets=[]", "targets=[-1]", "share=all", "tuned=no",
                                               "unit=km")),
    *(["analysis=curves", o] for o in ("law=best", "fit_runs=[nope]", "heldout_runs=[nope]", "run_by=[nope]", "points=3",
                                       "fraction=2", "smooth=2", "momentum=2", "kernel=box", "optimise_steps=2", "nodes=1",
                                       "peak_lr=-1", "from_step=x", "columns.step=nope")),
    *(["analysis=transfer", o] for o in ("tuned=batch", "scale=age", "fixed=lr", "compare=nope", "reference=nope",
                                         "factor=1", "exponent=two", "best=all", "interval=[3,1]",
                                         "interval=[-1,1]", "initial_loss=0")),
    *([f"analysis={a}", o] for a in ("lr", "lr_batch", "tau", "weight_decay", "batch")
      for o in ("stage=three", "compare=perhaps", "estimator=spline")),
)  # fmt: skip
foreign = st.one_of(
    st.tuples(st.sampled_from(["csv", "table", "wandb"]), tables).map(lambda x: [f"{x[0]}={x[1]}"]),
    words(["csv=t.csv", "columns.lr=nope"], ["csv=t.csv", "columns.nope=lr"], ["csv=t.csv", "wandb=t.csv"], "wandb=t.csv",
          ["csv=t.csv", "where=lr > 1"], ["runs=runs", "columns.lr=lr"], "wandb=runs", "wandb=noise.csv", "csv=",
          ["table=t.csv", "csv=t.csv"], ["csv=t.csv", "--out", "t.xyz"], ["csv=t.csv", "columns=3"]),
)  # fmt: skip
targets = st.one_of(
    words([], "params=1e9", "tokens=1e9", "params=0 tokens=1e9", ["params=-1", "tokens=1e9"],
          ["params=nan", "tokens=1e9"], ["params=abc", "tokens=1e9"], ["params=[1]", "tokens=1e9"],
          ["params=1e9", "tokens=1e9", "tpp=3"], ["params=1e9", "tokens=inf"],
          ["params=1e9", "tokens=1e9", "batch_size=0"], ["model.width=8", "tokens=1e9"],
          ["params=1e9", "tokens=1e9", "nope=3"], ["params=1e9", "tokens=1e9", "level=7"],
          ["params=1e9", "params=1e9"]),
    st.floats(max_value=0).map(lambda x: [f"params={x}", "tokens=1e9"]),
)  # fmt: skip

command_lines = st.one_of(
    st.tuples(st.sampled_from([["train"], ["sweep", "sweep=lr_width"], ["status", "sweep=lr_width"],
                               ["check", "coordinates"]]),
              in_schema).map(lambda x: [*x[0], *TINY, *x[1]]),
    st.tuples(st.sampled_from([["train"], ["train", "--dry-run"], ["sweep", "sweep=lr_width"]]),
              in_resolving).map(lambda x: [*x[0], *without(TINY, x[1]), *x[1]]),
    in_preparing.map(lambda x: ["train", *TINY, *x]),
    tables.map(lambda t: ["fit", "analysis=lr", f"table={t}"]),
    options.map(lambda o: ["fit", "analysis=lr", "table=t.csv", *o]),
    analyses.map(lambda o: ["fit", "table=t.csv", *o]),
    foreign.map(lambda o: ["table", *o]),
    foreign.filter(lambda o: "--out" not in o).map(lambda o: ["fit", "analysis=lr", *o]),
    targets.map(lambda t: ["recommend", "laws=laws", *t]),
    st.sampled_from([
        [], ["swep"], ["sweep"], ["status"], ["fit"], ["recommend"], ["check"], ["check", "x"], ["table"], ["-x"],
        ["train train"], ["sweep", "lr_width"], ["sweep", "--config-dir", "nothing"],
        ["fit", "analysis=nope", "table=t.csv"], ["fit", "analysis=lr"], ["fit", "analysis=lr", "runs=missing"],
        ["fit", "analysis=lr", "runs=nothing"], ["fit", "analysis=[lr]", "table=t.csv"],
        ["fit", "analysis=lr,tau", "table=t.csv"], ["fit", "analysis=lr", "runs=t.csv"], ["table", "runs=missing"],
        ["table", "runs=nothing"], ["table", "runs=t.csv"], ["table", "runs="], ["table", "x=3"],
        ["table", "runs=runs", "--out", "t.xyz"], ["table", "runs=runs", "--out", "missing/t.csv"], ["table", "--out"],
        ["table", "runs=runs", "--out=text.txt/t.csv"], ["table", "runs=runs", "--json"],
        ["table", "runs=runs", "where=lr > 1"], ["recommend", "laws=missing", "params=1", "tokens=1"],
        ["recommend", "laws=nothing", "params=1", "tokens=1"], ["recommend", "laws=t.csv", "params=1", "tokens=1"],
        ["recommend", "laws=noise.json", "params=1", "tokens=1"], ["recommend", "laws=", "params=1", "tokens=1"],
        ["check", "coordinates", *TINY, "model.width=64"], ["check", "coordinates", *DATA, "model.width=0,16"],
        ["check", "coordinates", *DATA, "model.width=16,x"], ["check", "coordinates", *DATA, "seed=1,2"],
        ["check", "coordinates", *DATA, "out=t.csv", "model.width=16,32"],
        ["check", "coordinates", *DATA, "device=tpu"], ["check", "coordinates", *DATA, "model.width=16,32",
                                                        "model.depth=1,2"],
        ["check", "coordinates", *DATA, "model.width=16,32", "optimizer.lr=-1"],
        ["check", "coordinates", *DATA, "--json"],
    ]).filter(len),
)  # fmt: skip
