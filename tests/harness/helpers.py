"""Small points and a small corpus for the tests of the harness."""

from harness.compose import compose
from harness.config import DataConfig
from harness.data import prepare
from harness.places import DataBook
from harness.resolve import DataFacts, resolve
from harness.train import Runtime

TINY = ["model.width=16", "model.depth=1", "model.head_dim=8", "model.context=16", "batch_size=4", "precision=fp32",
        "validation.tokens=512", "data=markov", "data.tokens=40000", "data.states=16"]  # fmt: skip
FACTS = DataFacts("content", 256, 10**12)


def config(*overrides, command="train"):
    return compose(list(overrides), command).config


def point(*overrides, facts=FACTS):
    return resolve(config(*overrides), facts)


def tiny(cache, *overrides):
    """(Point, Runtime) of a run that takes a moment."""
    c = config(*TINY, *overrides)
    book = DataBook(cache, prepare=True, report=lambda line: None)
    facts = book(c.data)
    return resolve(c, facts), Runtime(book.corpora[facts.fingerprint], curve_points=20)


__all__ = ["DataConfig", "FACTS", "TINY", "config", "point", "prepare", "tiny"]
