"""Slices: rows that differ only in the tuned hyper-parameters, in what follows from them, and in seed.

Within a law's settings (parameterization, optimizer, schedule, ...) and a scale (parameters, shape, tokens within 2
%), a slice of LR holds the batch and either weight decay or tau; of tau or weight decay, LR and batch; of the batch,
LR and tau. Other swept hyper-parameters are held, one slice for each value, or profiled out (analysis/profile.py),
never mixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from analysis.codes import cluster, combine, distinct
from analysis.columns import CENSORED, SCALE, SETTINGS
from analysis.ended_early import as_planned, pruned_note
from analysis.errors import UserError
from analysis.parting import RAMPS, SAME_SHARE, part_ramps, part_settings

SAME_HELD = 0.02  # ladders written with three digits
SAME_TUNED = 0.01
MOST, MOST_PARTS = 3000, 20_000  # slices that a fit takes, and combinations of what is held, lone rows among them

GIVEN = ("params", "tokens", "tpp", "width", "depth", "head_dim", "vocab")
DECAY = ("weight_decay", "tau")
HELD_COLUMNS = ("lr", "tau", "weight_decay", "batch_size", "batch_tokens", "flops")
HELD = {
    "tau": ("lr", "batch"),
    "weight_decay": ("lr", "batch"),
    "lr": ("batch", "decay"),
    "batch": ("lr", "decay"),
    "lr_batch": ("decay",),
}
TUNED = {
    "tau": ("tau",),
    "weight_decay": ("weight_decay",),
    "lr": ("lr",),
    "batch": ("batch_size",),
    "lr_batch": ("lr", "batch_size"),
}


@dataclass(frozen=True)
class Slice:
    """One slice of n rows and k tuned hyper-parameters, natural logs."""

    targets: tuple[str, ...]
    settings: dict  # what its law has in common
    given: dict  # the scale: params, tokens, tpp, width, depth
    held: dict  # the other hyper-parameters
    flops: float  # training FLOPs (tokens where unknown), to tell the largest scales
    x: np.ndarray  # (n, k)
    loss: np.ndarray  # (n,) nats per token; NaN or any value where diverged
    diverged: np.ndarray  # (n,) bool: or stopped as worse than others of the slice (status pruned), which says as much
    seed: np.ndarray  # (n,) codes, -1 unknown
    block: np.ndarray  # (n,) codes of what shares its noise: runs, and branches of one trunk
    rows: np.ndarray  # (n,) positions in the canonical table
    pruned: np.ndarray | None = None  # (n,) bool: which of `diverged` were stopped; None: none

    @property
    def distinct(self) -> int:
        """Distinct tuned values of the coordinate that has fewest."""
        return min(len(np.unique(cluster(np.exp(column), tolerance=SAME_TUNED))) for column in self.x.T)


@dataclass
class Partition:
    slices: list[Slice]
    notes: list[str] = field(default_factory=list)


def batch_column(df: pd.DataFrame) -> str | None:
    """Sequences where known, else tokens."""
    return next((name for name in ("batch_size", "batch_tokens") if name in df and df[name].notna().any()), None)


def partition(
    df: pd.DataFrame,
    analysis: str,
    hold: str = "auto",
    profile: Sequence[str] = (),
    by: Sequence[str] = (),
    unit: str = "auto",
    extra: Sequence[str] = (),
) -> Partition:
    """The slices of a canonical table for one analysis, in order of settings, scale and what is held.

    hold: auto, weight_decay, tau (for tau also lr): auto takes what leaves more rows in slices of three values or
    more. profile: hyper-parameters that are not held, for `profile.reduce`. by: further columns, each combination a
    law of its own. unit: sequences, tokens or auto, of the batch. extra: further columns of which `given` holds the
    median. Raises UserError where a needed column is missing or no row can be used.
    """
    targets = tuple(_batch(df, unit) if name == "batch_size" else name for name in TUNED[analysis])
    for name in targets:
        if name not in df:
            raise UserError(_missing(name, df))
    notes: list[str] = []
    df = _usable(df.assign(_row=np.arange(len(df))), targets, notes)
    names = [name for name in (*SETTINGS, *by) if name in df]
    for name in by:
        if name not in df:
            raise UserError(f"by=[{name}]: the table has no such column.")
    settings = combine(*[_setting_codes(df, name) for name in names]) if names else np.zeros(len(df), int)
    columns = _arrays(df, (*targets, *GIVEN, *HELD_COLUMNS, *extra))
    slices, ignored, parting, moving = [], 0, set(), set()
    for code in np.unique(settings):
        spots = np.flatnonzero(settings == code)
        group = df.iloc[spots]
        batched = analysis in ("batch", "lr_batch")
        scale = _scale(group, () if batched else RAMPS)
        held, lines = _choose_held(group, scale, analysis, targets, hold, profile)
        notes += [line for line in lines if line not in notes]
        codes = combine(scale, *[_held_codes(group, name) for name in held]) if held else scale
        tuned = combine(*[cluster(group[name], tolerance=SAME_TUNED) for name in _moved(targets, profile, group)])
        codes = part_ramps(group, codes, tuned) if batched else codes
        codes, settled, loose = part_settings(group, codes, tuned, names)
        parting, moving = parting | set(settled), moving | set(loose)
        same = {name: plain(group[name].iloc[0]) for name in names}
        order = np.argsort(codes, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
        _bound(len(parts), MOST_PARTS, len(group), held)
        found = [_slice(columns, spots[part], targets, same, held, extra) for part in parts]
        found = [
            replace(s, given=s.given | {name: plain(group[name].iloc[part[0]]) for name in settled})
            for s, part in zip(found, parts, strict=True)
        ]
        kept = _drop_lone(found, [int(scale[part[0]]) for part in parts])
        ignored += sum(len(s.rows) for s in found) - sum(len(s.rows) for s in kept)
        slices += kept
        _bound(len(slices), MOST, len(df), held)
    if ignored:
        notes.append(f"{ignored} rows stand alone in {' and '.join(targets)} at what they hold, so they are in no slice.")
    if parting:
        also = f" ({', '.join(sorted(parting & moving))} not in slices where it hardly repeats)" if parting & moving else ""
        notes.append(
            f"{', '.join(sorted(parting))} vary at one {' and '.join(targets)}: one slice for each value{also}, all in one "
            f"law; by=[{min(parting)}] gives each a law of its own."
        )
    if moving := moving - parting:
        notes.append(f"{', '.join(sorted(moving))} vary inside slices and are not held; by=[{min(moving)}] would part them.")
    return Partition(slices, notes)


def _bound(count: int, most: int, rows: int, held: Sequence[str]) -> None:
    if count > most:
        raise UserError(
            f"{rows} rows fall into {count} slices of one scale{''.join(f', {name}' for name in held)}, more than {most}:\n"
            "leave some out with where=, or round what hardly two rows share."
        )


def _batch(df: pd.DataFrame, unit: str) -> str:
    wanted = {"sequences": "batch_size", "tokens": "batch_tokens", "auto": batch_column(df) or "batch_size"}
    if unit not in wanted:
        raise UserError(f"unit={unit} must be sequences, tokens or auto.")
    return wanted[unit]


def _missing(name: str, df: pd.DataFrame) -> str:
    if name == "tau" and "weight_decay" in df and "lr_adjusted" not in df:
        return (
            "tau needs the LR of the hidden matrices: give columns.lr_adjusted=..., or say parameterization=standard\n"
            "or lr_adjusted=lr if no width rule changes it."
        )
    if name == "tau" and {"weight_decay", "lr_adjusted"} <= set(df):
        absent = [column for column in ("batch_size", "context", "tokens") if column not in df]
        said = f"{' and '.join(absent)} (or batch_tokens, or steps)" if absent else "weight_decay_adjusted"
        return f"tau needs the share of one batch in the tokens: the table has no {said}; map columns.NAME=THEIRS."
    needs = {
        "tau": "lr_adjusted, weight_decay and steps (or tokens and batch)",
        "batch_size": "batch_tokens and context",
    }
    return f"the table has no {name}; map it with columns.{name}=THEIRS" + (
        f" (or {needs[name]})." if name in needs else "."
    )


def _usable(df: pd.DataFrame, targets: tuple[str, ...], notes: list[str]) -> pd.DataFrame:
    """Done, diverged and pruned rows with a tuned value on the log axis; what is left out is counted in the notes."""
    if "loss" not in df:
        raise UserError("the table has no loss; map it with columns.loss=THEIRS.")
    others = df["status"][~df["status"].isin(["done", *CENSORED])].value_counts()
    if len(others):
        notes.append("not used: " + ", ".join(f"{n} {word}" for word, n in others.items()) + ".")
    df = as_planned(df[df["status"].isin(["done", *CENSORED])])
    notes += pruned_note(df)
    known = df.drop(columns="_row").duplicated()
    if known.any():
        notes.append(f"{int(known.sum())} rows repeat others in every column: used once.")
        df = df[~known]
    if "run_id" in df and (twice := _same_run(df)):
        notes.append(
            f"{twice} rows have the loss of another run_id at the same settings to all digits, likely one run twice: "
            "used as they are, where= leaves some out."
        )
    diverged = df["status"].isin(CENSORED) | np.isposinf(df["loss"])
    empty = df["loss"].isna() & ~diverged
    if empty.any():
        notes.append(f"{int(empty.sum())} rows are done but have no loss: not used.")
        df, diverged = df[~empty], diverged[~empty]
    if (negative := (df["loss"] <= 0) & ~diverged).any():
        raise UserError(
            f"loss is not above 0 in {int(negative.sum())} rows; it is nats per token. Mend it or filter with where=."
        )
    for name in targets:
        absent = df[name].isna() if name == "tau" else df[name].isna() | (df[name] <= 0)
        if absent.any():
            notes.append(f"{int(absent.sum())} rows have no {name} above 0, which a log axis cannot show: not used.")
            df, diverged = df[~absent], diverged[~absent]
    if df.empty:
        raise UserError("no row of the table can be used" + (f" ({notes[0].rstrip('.')})." if notes else "."))
    return df.assign(_diverged=diverged)


def _same_run(df: pd.DataFrame) -> int:
    """Rows that differ from another in run_id alone, of losses that five decimals do not write."""
    exact = df[(df["loss"] - df["loss"].round(5)).abs() > 1e-9]
    return int(exact.drop(columns=["_row", "run_id"]).duplicated().sum())


def _scale(df: pd.DataFrame, ramps: Sequence[str]) -> np.ndarray:
    """Codes of model shape, tokens and epochs, and of `ramps` as shares of training: of warm-up and cool-down where the
    batch is held (else they may follow from the batch)."""
    codes = np.zeros(len(df), int)
    for name in SCALE:
        if name in df and df[name].notna().any():
            codes = cluster(df[name], codes, 1e-3)
    for name in ("tokens", "epochs"):
        if name in df and df[name].notna().any():
            codes = cluster(df[name], codes)
    for name in ramps:
        if {name, "tokens"} <= set(df):
            codes = cluster(df[name] / df["tokens"], codes, SAME_SHARE)
    return codes


def _moved(targets: Sequence[str], profile: Sequence[str], df: pd.DataFrame) -> list[str]:
    """What is tuned or profiled out: another column may follow from it."""
    decay = DECAY if set(DECAY) & set(profile) else ()
    return [name for name in dict.fromkeys((*targets, *profile, *decay)) if name in df]


def _setting_codes(df: pd.DataFrame, name: str) -> np.ndarray:
    """Equal values; numbers but for rounding, and contexts within 1 % (quotients of rounded batches)."""
    if pd.api.types.is_float_dtype(df[name]) and not (df[name] < 0).any():
        return cluster(df[name], tolerance=0.01 if name == "context" else 1e-6)
    return pd.factorize(df[name], sort=False)[0]


def _held_codes(df: pd.DataFrame, name: str) -> np.ndarray:
    return cluster(df[name], tolerance=SAME_HELD)


def _choose_held(df, scale, analysis, targets, hold, profile) -> tuple[list[str], list[str]]:
    """Columns that a slice holds, and lines on what could not be held."""
    choices = ("auto", *DECAY, "lr") if analysis == "tau" else ("auto", *DECAY)
    if hold not in choices:
        raise UserError(f"hold={hold} must be one of {', '.join(choices)}.")
    known = {name for name in df if df[name].notna().any()}
    held, notes = [], []
    for name in HELD[analysis]:
        if name == "lr" and analysis == "tau" and hold == "weight_decay":
            name = "weight_decay"
        name = batch_column(df) if name == "batch" else name
        if name == "decay" and set(DECAY) & set(profile):
            continue
        if name == "decay":
            options = [column for column in DECAY if column in known and column not in targets]
            if hold in DECAY and hold not in options:
                raise UserError(
                    f"hold={hold}: the table has no {hold}{'; ' + _missing('tau', df) if hold == 'tau' else '.'}"
                )
            if not options:
                notes.append("weight decay is not in the table: taken as held.")
                continue
            name = hold if hold in DECAY else _fuller(df, scale, held, options, targets, analysis == "batch" and not profile)
        if name is None or name not in known:
            notes.append(f"{name or 'the batch'} is not in the table: taken as held.")
        elif name not in profile and not (name == "batch_tokens" and "batch_size" in profile):
            held.append(name)
    if analysis == "batch" and "tau" not in held and "weight_decay" in held:
        notes.append("the batch slices hold weight decay, not tau: their optimum mixes batch with tau.")
    return held, notes


def _fuller(df, scale, held, options, targets, prefer_tau: bool) -> str:
    """Of weight decay and tau the one whose slices of three values or more hold more rows; a batch slice holds tau if
    it can."""
    if prefer_tau:
        return options[-1]
    base = combine(scale, *[_held_codes(df, name) for name in held]) if held else scale
    tuned = combine(*[cluster(df[name], tolerance=SAME_TUNED) for name in targets])

    def rows(name: str) -> int:
        return int((distinct(tuned, combine(base, _held_codes(df, name))) >= 3).sum())

    return max(options, key=rows)


def _arrays(df: pd.DataFrame, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns that slices are cut from, as arrays."""
    arrays = {name: df[name].to_numpy(float) for name in dict.fromkeys(names) if name in df}
    empty = pd.Series(None, index=df.index, dtype=object)
    block = df["trunk"].astype(object) if "trunk" in df else empty
    block = block.where(block.notna(), df["run_id"].astype(object) if "run_id" in df else empty)
    block = block.where(block.notna(), "row " + df["_row"].astype(str))
    return arrays | {
        "loss": df["loss"].to_numpy(float),
        "diverged": df["_diverged"].to_numpy(bool),
        "pruned": (df["status"] == "pruned").to_numpy(bool),
        "seed": pd.factorize(df["seed"])[0] if "seed" in df else np.full(len(df), -1),
        "block": pd.factorize(block)[0],
        "rows": df["_row"].to_numpy(),
    }


def _slice(columns: dict[str, np.ndarray], part: np.ndarray, targets, settings, held, extra) -> Slice:
    def middle(name: str) -> float | None:
        values = columns[name][part] if name in columns else np.empty(0)
        values = values[np.isfinite(values)]
        return float(np.median(values)) if len(values) else None

    beyond = [name for name in extra if name not in (*targets, *held, "flops", "loss")]
    given = {name: middle(name) for name in dict.fromkeys((*GIVEN, *beyond))}
    return Slice(
        targets=targets,
        settings=settings,
        given={name: value for name, value in given.items() if value is not None},
        held={name: middle(name) for name in held},
        flops=middle("flops") or middle("tokens") or middle("params") or 0.0,
        x=np.log(np.stack([columns[name][part] for name in targets], axis=1)),
        **{name: columns[name][part] for name in ("loss", "diverged", "seed", "block", "rows", "pruned")},
    )


def plain(value: object) -> object:
    """A cell as JSON can hold it; an empty one is None."""
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return None
    return value.item() if isinstance(value, np.generic) else value


def _drop_lone(found: list[Slice], scales: list[int]) -> list[Slice]:
    """Without slices of one value that are rows of another sweep: their scale has a real slice, or several such."""
    lone = [s.distinct < 2 for s in found]
    crowd = pd.Series(scales).groupby(scales).transform("size").tolist()
    return [s for s, alone, many in zip(found, lone, crowd, strict=True) if not (alone and many > 1)]
