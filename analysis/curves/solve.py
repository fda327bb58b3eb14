"""Curve laws L(t) = L0 + A S(t)^-alpha - B F(t; psi), F the annealing term of analysis/curves/kernels.py.

Global search by variable projection: for a grid of alpha and psi the best L0, A and B follow from linear least squares
of relative residuals; the best distinct starts then take batched Levenberg-Marquardt steps on the summed Huber loss of
log residuals, with analytic derivatives. (Ours; Tissue et al. and Luo et al. descend from many starts.)

theta = (log L0, log A, log alpha, B, psi...), with S in units of `scale` and F in units of `gain`.
"""

from dataclasses import dataclass

import numpy as np

from analysis.curves.history import Points
from analysis.curves.kernels import Kernel, Nothing

ALPHAS = np.exp(np.linspace(np.log(0.05), np.log(2.0), 12))
BEST = 6  # starts that are refined
COARSE = 120  # points behind the rough search
FLOOR = 1e-3  # nats: a law that predicts less is cut off there
BOUND = 30.0  # of theta in logs


@dataclass(frozen=True)
class Model:
    """A law's form with the units in which it is solved."""

    kernel: Kernel
    scale: float
    gain: float

    @classmethod
    def of(cls, kernel: Kernel, at: Points) -> "Model":
        feature = [np.abs(at.gather(at.drop * kernel.value(psi, at)[0])).max() for psi in kernel.start()]
        return cls(kernel, float(np.exp(np.log(at.total).mean())), float(np.median(feature)) or 1.0)

    @property
    def size(self) -> int:
        return (3 if isinstance(self.kernel, Nothing) else 4) + len(self.kernel.names)

    def feature(self, psi: np.ndarray, at: Points) -> tuple[np.ndarray, list[np.ndarray]]:
        value, slopes = self.kernel.value(psi, at)
        return at.gather(at.drop * value) / self.gain, [at.gather(at.drop * s) / self.gain for s in slopes]

    def log_loss(self, theta: np.ndarray, at: Points, known: tuple | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(R, P) log loss and its derivatives (R, P, size) by theta (R, size). known: the feature, where no psi moves it."""
        theta = np.atleast_2d(theta)
        log_s = np.log(at.total / self.scale)
        floor, alpha = np.exp(theta[:, :1]), np.exp(theta[:, 2:3])
        power = np.exp(np.clip(theta[:, 1:2] - alpha * log_s, -700, 700))
        loss, slopes = floor + power, [np.broadcast_to(floor, power.shape), power, -power * alpha * log_s]
        if self.size > 3:
            moving = self.kernel.names
            found = [self.feature(row[4:], at) for row in theta] if moving else [known or self.feature(theta[0, 4:], at)]
            feature = np.stack([f for f, _ in found])
            loss = loss - theta[:, 3:4] * feature
            slopes.append(np.broadcast_to(-feature, loss.shape))
            for k in range(len(self.kernel.names)):
                slopes.append(-theta[:, 3:4] * np.stack([s[k] for _, s in found]))
        inside = loss > FLOOR
        loss = np.where(inside, loss, FLOOR)
        return np.log(loss), np.stack([np.where(inside, s / loss, 0.0) for s in slopes], axis=-1)

    def natural(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """The parameters of the paper, arrays of the shape theta has without its last axis."""
        alpha = np.exp(theta[..., 2])
        named = {"L0": np.exp(theta[..., 0]), "A": np.exp(theta[..., 1] + alpha * np.log(self.scale)), "alpha": alpha}
        if self.size > 3:
            named["B" if self.kernel.names and self.kernel.names[0] == "C" else "C"] = theta[..., 3] / self.gain
            named |= dict(zip(self.kernel.names, self.kernel.natural(theta[..., 4:]), strict=True))
        return named


@dataclass(frozen=True)
class Fit:
    model: Model
    theta: np.ndarray
    objective: float


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(residual)
    return np.where(size <= delta, residual**2 / 2, delta * (size - delta / 2))


def starts(model: Model, y: np.ndarray, at: Points) -> np.ndarray:
    """(n, size) starts, best first, one for each psi of the grid at most; y (P,) log losses."""
    loss, log_s = np.exp(y), np.log(at.total / model.scale)
    rows = []
    for psi in model.kernel.start():
        feature = model.feature(psi, at)[0] if model.size > 3 else None
        best = None
        for alpha in ALPHAS:
            columns = [np.ones_like(y), np.exp(-alpha * log_s)] + ([-feature] if feature is not None else [])
            x = np.stack(columns, axis=1) / loss[:, None]
            linear = np.linalg.lstsq(x, np.ones_like(y), rcond=1e-10)[0]
            linear[:2] = np.maximum(linear[:2], 1e-3)
            cost = np.abs(x @ linear - 1).sum()
            if best is None or cost < best[0]:
                best = cost, np.concatenate([np.log(linear[:2]), [np.log(alpha)], linear[2:], psi])
        rows.append(best)
    rows.sort(key=lambda row: row[0])
    return np.array([theta for _, theta in rows[:BEST]])


def descend(model: Model, theta: np.ndarray, y: np.ndarray, at: Points, delta: float, steps: int = 200) -> tuple:
    """(theta (R, size), objective (R,)) after Levenberg-Marquardt steps with Huber's weights from each start."""
    theta = np.array(np.atleast_2d(theta), float)
    low, high = np.full(model.size, -BOUND), np.full(model.size, BOUND)
    low[4:], high[4:] = np.array(model.kernel.bounds).reshape(-1, 2).T if model.size > 4 else ((), ())
    known = None if model.kernel.names or model.size == 3 else model.feature(theta[0, 4:], at)
    predicted, jacobian = model.log_loss(theta, at, known)
    cost = huber(y - predicted, delta).sum(1)
    damping = np.full(len(theta), 1e-2)
    idle = 0
    for _ in range(steps):
        residual = y - predicted
        weight = np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
        weighted = (jacobian * weight[..., None]).swapaxes(1, 2)
        normal, gradient = weighted @ jacobian, (weighted @ residual[..., None])[..., 0]
        ridge = damping[:, None] * np.einsum("rii->ri", normal) + 1e-12 * np.trace(normal, axis1=1, axis2=2)[:, None]
        step = np.linalg.solve(normal + np.eye(model.size) * (ridge[:, :, None] + 1e-300), gradient[..., None])[..., 0]
        trial = np.clip(theta + np.clip(step, -2.0, 2.0), low, high)
        value, slopes = model.log_loss(trial, at, known)
        new = huber(y - value, delta).sum(1)
        better = new < cost
        gained = np.where(better, (cost - new) / np.maximum(cost, 1e-300), 0.0)
        theta[better], predicted[better], jacobian[better], cost[better] = (
            trial[better], value[better], slopes[better], new[better])  # fmt: skip
        damping = np.where(better, np.maximum(damping / 4, 1e-9), np.minimum(damping * 5, 1e8))
        idle = idle + 1 if gained.max() < 1e-8 else 0
        if idle >= 6:
            break
    return theta, cost


def solve(kernel: Kernel, y: np.ndarray, at: Points, delta: float, start: np.ndarray | None = None) -> Fit:
    """The law of lowest summed Huber loss; y (P,) log losses at the places `at`. start: theta of an earlier fit in the
    same model's units, to begin from there alone."""
    model = Model.of(kernel, at)
    if start is None:
        few = np.arange(len(y)) % max(1, len(y) // COARSE) == 0
        begin = starts(model, y[few], at.take(few))
        if len(begin) > 1:  # rough steps for all on few points, fine ones for the best
            begin, cost = descend(model, begin, y[few], at.take(few), delta, 60)
            begin = begin[[np.argmin(cost)]]
    else:
        begin = np.atleast_2d(start)
    theta, cost = descend(model, begin, y, at, delta)
    best = int(np.argmin(cost))
    return Fit(model, theta[best], float(cost[best]))
