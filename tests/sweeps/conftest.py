"""Requests and facts for the tests of sweeps."""

import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.compose import compose
from harness.resolve import DataFacts
from sweeps.expand import expand
from sweeps.jobs import Settings
from sweeps.local import run
from sweeps.plan import make_plan


@pytest.fixture(scope="session")
def facts():
    """Of a byte-level corpus that is not prepared."""
    return DataFacts("0123456789abcdef", 256, None)


@pytest.fixture(scope="session")
def request_of():
    """(overrides, fields of SweepConfig put in by hand) -> Request."""

    def build(*overrides, file_given=(), **sweep):
        r = compose(list(overrides), "sweep")
        config = replace(r.config, sweep=replace(r.config.sweep, **sweep))
        return replace(r, config=config, file_given=r.file_given | frozenset(file_given))

    return build


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, request_of):
    """A small synthetic corpus, prepared once."""
    from harness.data import prepare

    config = request_of("data=markov", "data.states=16", "data.tokens=200000").config
    return prepare(config.data, tmp_path_factory.mktemp("corpus"), report=lambda _: None)


@pytest.fixture(scope="session")
def tiny(corpus, request_of):
    """Tiny points: `tiny("seed=0,1", tokens=20000)`, a second or so each at most."""

    def build(*overrides, tokens=8192):
        fixed = ["model.width=16", "model.depth=1", "model.context=32", "batch_size=4", f"tokens={tokens}",
                 "validation.tokens=512", "precision=fp32"]  # fmt: skip
        r = request_of("data=markov", "data.states=16", "data.tokens=200000", "data.epochs=100", *fixed, *overrides)
        facts = DataFacts(corpus.fingerprint, corpus.vocab, corpus.train_tokens)
        return expand(r, facts), r.config

    return build


@pytest.fixture
def launch(corpus, tmp_path):
    """(points, config, folder, settings) -> Summary of a launch of the local launcher."""

    def build(points, config, folder="out", stream=None, **settings):
        out = tmp_path / folder
        launcher = replace(config.launcher, compile="never", workers=settings.pop("workers", 2))
        plan = make_plan(points, out / "runs", launcher, tmp_path / "cache", "cpu", probe=False)
        chosen = {"runs_dir": out / "runs", "cache": tmp_path / "cache", "logs": out / "logs", "workers": plan.workers,
                  "corpora": {corpus.fingerprint: str(corpus.dir)}, **settings}  # fmt: skip
        return run(plan, Settings(**chosen), stream=stream or io.StringIO())

    return build


class Background:
    """Launches in processes of their own."""

    def __init__(self, folder, corpus):
        self.folder, self.corpus, self.started = folder, corpus, []

    def __call__(self, points, folder="out", **settings):
        out, n = self.folder / folder, len(self.started)
        chosen = {"runs_dir": out / "runs", "cache": self.folder / "cache", "logs": out / f"logs{n}", "workers": 2,
                  "corpora": {self.corpus.fingerprint: self.corpus.dir}, **settings}  # fmt: skip
        spec = self.folder / f"spec{n}.json"
        spec.write_text(json.dumps({"points": [p.to_dict() for p in points], "settings": chosen}, default=str))
        script = Path(__file__).with_name("launch_script.py")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.started.append(subprocess.Popen([sys.executable, str(script), str(spec)], **pipes))
        return self.started[-1]

    @staticmethod
    def children(pid):
        """Worker processes of a launcher."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found

    @staticmethod
    def wait_for(condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)


@pytest.fixture
def background(corpus, tmp_path):
    """(points, folder, settings) -> the process of a launch; all are ended with the test."""
    launches = Background(tmp_path, corpus)
    yield launches
    for process in launches.started:
        if process.poll() is None:
            process.kill()
            process.wait()
