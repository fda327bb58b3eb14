"""Loss with repeated data (Muennighoff et al., arXiv 2305.16264, equations 5 and 6, appendix A):

    L = E + A / N'^alpha + B / D'^beta
    D' = U_D + U_D R*_D (1 - exp(-R_D / R*_D)),  R_D = epochs - 1,  U_D unique tokens
    N' = U_N + U_N R*_N (1 - exp(-R_N / R*_N)),  R_N = N / U_N - 1, U_N = min(N, N_opt(U_D)),

N_opt(U_D): the parameters for which U_D tokens are compute-optimal under the law itself, G (G U_D)^(beta/alpha).
Repeated tokens, and parameters beyond what the unique data feed, are worth less the more there are. theta: (..., 7) of
ln E, ln A, ln B, alpha, beta, ln R*_D, ln R*_N; any of them may be held. The valley in the R* is flat and has several
minima (the authors stopped at one), hence a grid of starts.
"""

import numpy as np

from analysis.loss.allocation import log_g, log_loss_at
from analysis.loss.huber import Rows, huber, natural
from analysis.loss.point import fit_point
from analysis.loss.resample import block_weights
from analysis.loss.solver import minimise

SYMBOLS = ("E", "A", "B", "alpha", "beta", "R_D", "R_N")
LOW = np.array([-16.0, -10.0, -10.0, 1e-3, 1e-3, np.log(0.02), np.log(0.02)])
HIGH = np.array([6.0, 60.0, 60.0, 5.0, 5.0, np.log(1e5), np.log(1e5)])
GRID = np.log([0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0])
STEP = 1e-7


def effective(theta: np.ndarray, log_params, log_tokens, log_epochs) -> tuple[np.ndarray, np.ndarray]:
    """(ln N', ln D'); theta (..., 7) broadcasts against the others."""
    alpha, beta, worth_d, worth_n = (theta[..., k] for k in (3, 4, 5, 6))
    log_unique = log_tokens - log_epochs
    g = log_g(theta[..., :5])
    log_fed = np.minimum(log_params, g + beta / alpha * (g + log_unique))
    return (log_fed + _worth(np.expm1(np.minimum(log_params - log_fed, 700.0)), worth_n),
            log_unique + _worth(np.expm1(log_epochs), worth_d))  # fmt: skip


def _worth(repeats, log_star) -> np.ndarray:
    """ln of 1 + R* (1 - exp(-R / R*))."""
    star = np.exp(log_star)
    return np.log1p(-star * np.expm1(-repeats / star))


def log_loss(theta: np.ndarray, x: np.ndarray, z: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """theta (S, 7); x, z, epochs (n,): logs of N, tokens seen and epochs -> (S, n)."""
    wide = theta[:, None, :]
    return log_loss_at(wide[..., :5], *effective(wide, x, z, epochs))


class Problem:
    """params, tokens (seen), epochs, loss (n,); held {symbol: value}."""

    def __init__(self, params, tokens, epochs, loss, delta: float = 1e-3, held: dict[str, float] | None = None):
        self.x, self.z, self.epochs, self.y = (np.log(np.asarray(v, float)) for v in (params, tokens, epochs, loss))
        self.delta, self.low, self.high = delta, LOW.copy(), HIGH.copy()
        for symbol, value in (held or {}).items():
            k = SYMBOLS.index(symbol)
            self.low[k] = self.high[k] = value if symbol in ("alpha", "beta") else np.log(value)
        self.free = self.low < self.high

    def residual(self, theta: np.ndarray) -> np.ndarray:
        return log_loss(theta, self.x, self.z, self.epochs) - self.y

    def objective(self, theta: np.ndarray) -> np.ndarray:
        return huber(self.residual(np.atleast_2d(theta)), self.delta).sum(axis=1)

    def assessor(self, weights: np.ndarray | None = None, delta: float | None = None):
        """Gauss-Newton terms; the Jacobian by differences (7 columns, few rows)."""
        delta = self.delta if delta is None else delta

        def assess(theta: np.ndarray, index: np.ndarray):
            residual = self.residual(theta)
            jacobian = np.zeros((*residual.shape, 7))
            for k in np.flatnonzero(self.free):
                step = np.zeros(7)
                step[k] = STEP
                jacobian[..., k] = (self.residual(theta + step) - residual) / STEP
            weight = np.ones_like(residual) if weights is None else weights[index]
            psi, size = np.clip(residual, -delta, delta), np.abs(residual)
            majorant = weight * delta / np.maximum(size, delta)
            value = (weight * psi * (residual - 0.5 * psi)).sum(axis=1)
            g = ((weight * psi)[:, None, :] @ jacobian)[:, 0]
            m = (jacobian * majorant[..., None]).transpose(0, 2, 1) @ jacobian
            h = (jacobian * np.where(size > delta, 0.0, majorant)[..., None]).transpose(0, 2, 1) @ jacobian
            return value, g, h, m

        return assess

    def starts(self) -> np.ndarray:
        """Laws of one epoch (and of all rows as if none repeated) with each pair of a grid of R*."""
        once = self.epochs < np.log(1.02)
        laws = []
        for rows in ([once] if once.sum() >= 8 else []) + [np.ones(len(self.y), bool)]:
            plain = Rows.of(*(np.exp(v[rows]) for v in (self.x, self.z, self.y)), self.delta)
            laws.append(natural(fit_point(plain).theta, plain))
        pairs = np.stack(np.meshgrid(GRID, GRID), axis=-1).reshape(-1, 2)
        return np.concatenate([np.hstack([np.tile(law, (len(pairs), 1)), pairs]) for law in laws])

    def fit(self, first: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """(theta (7,), objective) of the lowest minimum found."""
        theta = self.starts() if first is None else np.atleast_2d(first)
        theta = np.clip(theta, self.low, self.high)
        for delta in (64 * self.delta, 8 * self.delta, 2 * self.delta):
            moved, _, _ = minimise(self.assessor(delta=delta), theta, self.low, self.high, 12, 1e-4)
            theta = np.concatenate([theta, moved])[: 4 * len(moved)]
            theta = theta[np.argsort(self.objective(theta))[: len(moved)]]
        theta, value, _ = minimise(self.assessor(), theta[:48], self.low, self.high, 80, 1e-12)
        return theta[value.argmin()], float(value.min())

    def resample(self, theta: np.ndarray, block: np.ndarray, count: int, rng) -> np.ndarray:
        """(count, 7): as analysis/loss/resample.py."""
        found = []
        for at in range(0, count, 250):
            size = min(250, count - at)
            weights = block_weights(int(block.max()) + 1, size, rng)[:, block]
            start = np.tile(theta, (size, 1))
            found.append(minimise(self.assessor(weights), start, self.low, self.high, 30, 1e-7)[0])
        return np.concatenate(found)
