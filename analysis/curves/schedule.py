"""The schedule that minimises the final loss that a curve law predicts, at a given peak and length.

After a linear warm-up to the peak the LR may only fall: with nodes evenly over the rest, eta_j = peak - sum_(i<=j) d_i,
d >= 0, sum d <= peak. Minimised over d by spectral projected gradient (Birgin, Martinez and Raydan 2000) with analytic
derivatives from several starts. (Luo et al., arXiv 2503.12811, section 5, descend on eta_t under the same constraint;
their result: a stable stretch, then a decay of about the power 1.5.)

Where the kernel depends on the age of a drop alone (annealing law), the problem is convex, so the result is the optimum,
and degenerate: every drop is best at one age, where what a step more of training is worth equals what a step more of
annealing is, so the law asks for the whole drop at once. Read that as a limit of the law, not as advice.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.curves.history import FLAT, GAUSS, History, Points
from analysis.curves.law import CurveLaw
from analysis.curves.options import Options
from analysis.curves.solve import Model

STEPS = 2000  # of the projected gradient, from each start
ENOUGH = 1e-10  # nats: a step that gains less ends the search
MEMORY = 8  # objective values that a step may exceed no more than (non-monotone line search)
FINE = 400  # nodes at which schedules of a formula are compared
STARTS = ("linear to 0", "cosine to 0", "wsd, linear over the last 20 %")
AT_ONCE = 0.5  # of the peak in one node: a degenerate schedule

FORMS = {
    "constant": lambda u: np.ones_like(u),
    "cosine to 0": lambda u: (1 + np.cos(np.pi * u)) / 2,
    "cosine to 10 %": lambda u: 0.1 + 0.9 * (1 + np.cos(np.pi * u)) / 2,
    "linear to 0": lambda u: 1 - u,
    "wsd, linear over the last 20 %": lambda u: np.minimum(1.0, (1 - u) / 0.2),
    "wsd, 1 - sqrt over the last 20 %": lambda u: 1 - np.sqrt(np.maximum(0.0, (u - 0.8) / 0.2)),
    "wsd, power 1.5 over the last 40 %": lambda u: np.minimum(1.0, (1 - u) / 0.4) ** 1.5,
}


@dataclass
class Plan:
    """schedule: step, lr; compared: schedule, predicted final loss with interval, excess over the lowest; notes; forms:
    {name: History} for the figure."""

    schedule: pd.DataFrame
    compared: pd.DataFrame
    notes: list[str]
    forms: dict[str, History]


class FinalLoss:
    """Predicted final loss and its gradient as a function of LR (nodes + 1,) at `steps` (nodes + 1,), the first fixed at the
    peak; warm-up is linear from 0 at step 0 to steps[0]."""

    def __init__(self, model: Model, theta: np.ndarray, steps: np.ndarray):
        self.model, self.theta, self.steps = model, np.asarray(theta, float), np.asarray(steps, float)
        n = np.diff(self.steps)
        when = (self.steps[:-1, None] + 0.5 + n[:, None] * GAUSS).ravel()
        self.age = self.steps[-1] - when
        # LR and its sums are linear in the nodes: one column a node
        basis = [self._history(row) for row in np.eye(len(self.steps))]
        self.lr_at = np.stack([h.at(when) for h in basis], axis=1)
        until = np.stack([h.total(when) for h in basis], axis=1)
        self.total = np.array([h.total(self.steps[-1:])[0] for h in basis])
        self.area_at = self.total - until + self.lr_at

    def _history(self, lr: np.ndarray) -> History:
        if self.steps[0] <= 0:
            return History(self.steps, lr)
        return History(np.concatenate([[0.0], self.steps]), np.concatenate([[0.0], lr]))

    def __call__(self, lr: np.ndarray) -> tuple[float, np.ndarray]:
        model, theta = self.model, self.theta
        alpha = np.exp(theta[2])
        total = float(self.total @ lr)
        power = np.exp(theta[1] - alpha * np.log(total / model.scale))
        loss, slope = np.exp(theta[0]) + power, -alpha * power / total * self.total
        if model.size == 3:
            return float(loss), slope
        low = FLAT * lr[0]
        here, area = np.maximum(self.lr_at @ lr, low), np.maximum(self.area_at @ lr, low)
        half = np.repeat(lr[:-1] - lr[1:], 2) / 2
        at = Points(np.array([total]), np.zeros(len(half), int), half, self.age, np.log(here), np.log(area))
        value, by_lr, by_area = model.kernel.slopes(theta[4:], at)
        gain = theta[3] / model.gain
        pairs = value.reshape(-1, 2).sum(1) / 2
        move = self.lr_at.T @ (half * by_lr / here) + self.area_at.T @ (half * by_area / area)
        move[:-1] += pairs
        move[1:] -= pairs
        return float(loss - gain * (half @ value)), slope - gain * move


def minimise(loss: FinalLoss, peak: float, starts: list[np.ndarray]) -> np.ndarray:
    """LR at the nodes, starting with the peak, of lowest predicted loss; starts: LR at the nodes in units of the peak."""
    def at(d: np.ndarray) -> tuple[float, np.ndarray]:
        lr = peak * np.concatenate([[1.0], np.maximum(1 - np.cumsum(d), 0.0)])
        value, slope = loss(lr)
        return value, -peak * np.cumsum(slope[:0:-1])[::-1]

    best = None
    for start in starts:
        d = project(-np.diff(start))
        value, slope = at(d)
        recent, step = [value], 1.0 / max(np.abs(slope).max(), 1e-12)
        for _ in range(STEPS):
            way = project(d - step * slope) - d
            fall = float(slope @ way)
            if fall > -ENOUGH:
                break
            share, limit = 1.0, max(recent[-MEMORY:])
            while True:
                new, new_slope = at(d + share * way)
                if new <= limit + 1e-4 * share * fall or share < 1e-10:
                    break
                share /= 2
            if share < 1e-10:
                break
            moved, turned = share * way, new_slope - slope
            curvature = float(moved @ turned)
            step = float(np.clip(moved @ moved / curvature, 1e-8, 1e8)) if curvature > 0 else 1e3
            d, slope = d + moved, new_slope
            recent.append(new)
            if best is None or new < best[0]:
                best = new, d
        if best is None or value < best[0]:
            best = value, project(-np.diff(start))
    return peak * np.concatenate([[1.0], np.maximum(1 - np.cumsum(best[1]), 0.0)])


def project(d: np.ndarray) -> np.ndarray:
    """The nearest d with d >= 0 and sum d <= 1."""
    clipped = np.maximum(d, 0.0)
    if clipped.sum() <= 1:
        return clipped
    ordered = np.sort(d)[::-1]
    excess = (np.cumsum(ordered) - 1) / np.arange(1, len(d) + 1)
    return np.maximum(d - excess[np.flatnonzero(ordered > excess)[-1]], 0.0)


def search(law: CurveLaw, options: Options) -> Plan:
    """The Plan for optimise_steps, peak_lr, warmup_steps and nodes."""
    longest = max(law.curves, key=lambda c: c.total).history
    steps, peak = float(options.optimise_steps), options.peak_lr or longest.peak
    warmup = longest.steps[longest.warmup] if options.warmup_steps is None else float(options.warmup_steps)
    if warmup >= 0.9 * steps:
        warmup = np.floor(0.1 * steps)
    nodes = min(options.nodes, int(steps - warmup))
    grid = np.linspace(warmup, steps, nodes + 1)
    u = np.linspace(0, 1, nodes + 1)
    found = minimise(FinalLoss(law.fit.model, law.fit.theta, grid), peak, [FORMS[name](u) for name in STARTS])
    fine = np.linspace(warmup, steps, FINE + 1)
    forms = {name: _with_warmup(fine, peak * form((fine - warmup) / (steps - warmup))) for name, form in FORMS.items()}
    forms = {"lowest predicted": _with_warmup(fine, np.interp(fine, grid, found)), **forms}
    rows = []
    for name, history in forms.items():
        loss, low, high = law.predict(history, [steps])
        rows.append({"schedule": name, "predicted": float(loss[0]), "low": low[0], "high": high[0]})
    compared = pd.DataFrame(rows)
    compared["excess"] = compared["predicted"] - compared["predicted"].iloc[0]
    compared[["low", "high"]] = compared[["low", "high"]].astype(object).where(compared[["low", "high"]].notna(), None)
    notes = [_shape(law, found / peak, u)]
    most = max(c.total for c in law.curves)
    if steps > 1.5 * most:
        notes.append(f"{law.name}: a run of {steps:g} steps is {steps / most:.1f} times the longest that was fitted.")
    peaks = [c.history.peak for c in law.curves]
    if not 0.9 * min(peaks) <= peak <= 1.1 * max(peaks):
        notes.append(f"{law.name}: the peak {peak:g} lies outside those fitted ({min(peaks):g} to {max(peaks):g}).")
    return Plan(pd.DataFrame({"step": grid, "lr": found}), compared, notes, forms)


def _with_warmup(steps: np.ndarray, lr: np.ndarray) -> History:
    if steps[0] <= 0:
        return History(steps, lr)
    return History(np.concatenate([[0.0], steps]), np.concatenate([[0.0], lr]))


def _shape(law: CurveLaw, share: np.ndarray, u: np.ndarray) -> str:
    """What the schedule looks like, in a line."""
    falls = -np.diff(share)
    stable = u[np.flatnonzero(share > 0.99)[-1]]
    if share[-1] > 0.99:
        return f"{law.name}: the lowest predicted loss is that of a constant LR."
    if falls.max() > AT_ONCE:
        when = u[int(falls.argmax())]
        return (f"{law.name}: its optimal schedule is degenerate: {100 * falls.max():.0f} % of the peak falls at once, "
                f"{100 * (1 - when):.0f} % before the end; a limit of the law, "
                "not advice (law=multi_power asks for a gradual decay).")  # fmt: skip
    inside = (share < 0.97) & (share > 0.03) & (u < 1)
    power = ""
    if inside.sum() >= 3:
        x, y = np.log((1 - u[inside]) / (1 - stable)), np.log(share[inside])
        power = f", then a decay like (1 - u)^{(x @ y) / (x @ x):.2f}"
    return f"{law.name}: the schedule of lowest predicted loss is stable for {100 * stable:.0f} % after warm-up{power}."
