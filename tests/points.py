"""Requests, a small corpus and tiny points, for the tests of everything that trains."""

from dataclasses import replace

from harness.compose import compose
from harness.data import prepare
from harness.resolve import DataFacts
from sweeps.expand import expand

CORPUS = ["data=markov", "data.states=16", "data.tokens=200000"]


def request_of(*overrides, file_given=(), **sweep):
    """(overrides, fields of SweepConfig put in by hand) -> Request."""
    r = compose(list(overrides), "sweep")
    config = replace(r.config, sweep=replace(r.config.sweep, **sweep))
    return replace(r, config=config, file_given=r.file_given | frozenset(file_given))


def small_corpus(folder):
    """A small synthetic corpus, prepared in `folder`."""
    return prepare(request_of(*CORPUS).config.data, folder, report=lambda _: None)


def tiny_points(corpus, *overrides, tokens=8192):
    """(points, config): `tiny_points(corpus, "seed=0,1", tokens=20000)`, a second or so each at most."""
    fixed = ["model.width=16", "model.depth=1", "model.context=32", "batch_size=4", f"tokens={tokens}",
             "validation.tokens=512", "precision=fp32"]  # fmt: skip
    r = request_of(*CORPUS, "data.epochs=100", *fixed, *overrides)
    return expand(r, DataFacts(corpus.fingerprint, corpus.vocab, corpus.train_tokens)), r.config
