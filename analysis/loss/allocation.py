"""Compute-optimal N and D of a loss law at C = 6 N D (Hoffmann et al., arXiv 2203.15556, equation 4):

    N_opt = G (C/6)^(beta / (alpha + beta)),  D_opt = (C/6)^(alpha / (alpha + beta)) / G,
    G = (alpha A / (beta B))^(1 / (alpha + beta)).

Parameters come as (..., 5) of ln E, ln A, ln B, alpha, beta: one law, or its resamples.
"""

import numpy as np

OF = ("ln E", "ln A", "ln B", "alpha", "beta")


def exponents(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(of N_opt, of D_opt) in C."""
    alpha, beta = parameters[..., 3], parameters[..., 4]
    with np.errstate(invalid="ignore", divide="ignore"):
        return beta / (alpha + beta), alpha / (alpha + beta)


def log_g(parameters: np.ndarray) -> np.ndarray:
    _, a, b, alpha, beta = np.moveaxis(parameters, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.log(alpha) + a - np.log(beta) - b) / (alpha + beta)


def log_optimal(parameters: np.ndarray, flops: float) -> tuple[np.ndarray, np.ndarray]:
    """(ln N_opt, ln D_opt) at so many training FLOPs."""
    of_n, of_d = exponents(parameters)
    g, volume = log_g(parameters), np.log(flops / 6.0)
    return g + of_n * volume, of_d * volume - g


def log_loss_at(parameters: np.ndarray, log_params, log_tokens) -> np.ndarray:
    """ln L; a term whose coefficient is absent has ln A (ln B, ln E) = -inf."""
    e, a, b, alpha, beta = np.moveaxis(parameters, -1, 0)
    return np.logaddexp(np.logaddexp(e, a - alpha * log_params), b - beta * log_tokens)


def log_coefficients(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ln of N_opt, ln of D_opt) at one FLOP: coefficients of their power laws in C."""
    return log_optimal(parameters, 1.0)
