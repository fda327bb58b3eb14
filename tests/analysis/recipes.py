"""Laws made by hand, and what a recipe says."""

import math

import numpy as np


def power_law(name, coefficient, exponents, analysis=None, low_high=None, **extra):
    parameters = {"coefficient": {"value": coefficient}, **{k: {"value": v} for k, v in exponents.items()}}
    for symbol, (low, high) in (low_high or {}).items():
        parameters[symbol] |= {"low": low, "high": high}
    return {"analysis": analysis or name, "name": name, "given": {}, "parameters": parameters, **extra}


def laws(*entries, optima=()):
    return {"laws": list(entries), "optima": list(optima)}


def scales(params, tokens, **more):
    return {"params": list(params), "tokens": list(tokens), **more}


def fitted(name, points, y, dof=None, **extra):
    """Ordinary least squares in logs, as any textbook has it."""
    names = list(points)
    x = np.column_stack([np.ones(len(y)), *(np.log(points[n]) for n in names)])
    beta, *_ = np.linalg.lstsq(x, np.log(y), rcond=None)
    dof = len(y) - x.shape[1] if dof is None else dof
    variance = float(np.sum((np.log(y) - x @ beta) ** 2)) / max(dof, 1)
    return power_law(
        name,
        math.exp(beta[0]),
        dict(zip(names, beta[1:], strict=True)),
        predictors=names,
        covariance=(variance * np.linalg.inv(x.T @ x)).tolist(),
        scatter=math.sqrt(variance),
        dof=dof,
        **extra,
    )


POWER_LINES = (
    power_law("tau", 1.084, {"tpp": -0.527}, low_high={"tpp": (-0.529, -0.507)}),
    power_law("batch_size", 0.0306, {"tokens": 0.383}, given={"context": 2048}, low_high={"tokens": (0.367, 0.391)}),
)


def value(recipe, name):
    return recipe["recipe"][name]["value"]


def override(recipe, key):
    return next(word.split("=", 1)[1] for word in recipe["overrides"] if word.startswith(f"{key}="))


HELD_IN_TOKENS = power_law("lr", 0.1, {"params": -0.5}, held={"batch_tokens": 65536.0, "weight_decay": 0.1})
