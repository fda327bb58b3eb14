"""Libraries of compiled steps on disk: what is damaged, broken, old or of another key."""

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch

from harness import aot, step
from harness.aot import CompiledCodeError, load
from harness.build import KEPT_SECONDS
from harness.checkpoint import read_checkpoint
from harness.train import train_point

from .helpers import tiny

A, B = torch.ones(3), torch.arange(3.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a library that adds A and B."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        m.setattr("torch._inductor.codecache._HEADER_DIR", str(folder / "headers"), raising=False)  # not in every PyTorch
        assert load(torch.add, "sum", (A, B))(A, B).tolist() == [1, 2, 3]
    (library,) = (folder / "steps").iterdir()
    assert not (folder / "headers").exists()  # by default in /tmp, whoever made it
    return library.read_bytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (tmp_path / "steps").mkdir(mode=0o700)
    return tmp_path / "steps"


def put(folder, key, content):
    """A file that is called as a whole library is."""
    path = folder / f"{key}-{hashlib.blake2b(content, digest_size=16).hexdigest()}.so"
    path.write_bytes(content)
    return path


def result(run_dir):
    return json.loads((run_dir / "result.json").read_text())


class Once:
    """should_stop that turns true at its n-th call, once."""

    def __init__(self, n):
        self.left = n

    def __call__(self):
        self.left -= 1
        return self.left == 0


def test_a_damaged_and_a_broken_library_are_compiled_anew(folder, whole):
    """The one by its digest, before it is loaded; the other, which was made so, when it cannot be loaded."""
    added = load(torch.add, "sum", (A, B))
    damaged = put(folder, added.key, whole)
    damaged.write_bytes(whole[:-1000])
    broken = put(folder, added.key, b"no library")
    assert added(A, B).tolist() == [1, 2, 3] and not broken.exists()
    sound = [path for path in folder.glob("*.so") if path == aot._sealed(folder, added.key, path)]
    assert len(sound) == 1


def test_a_step_whose_libraries_all_fail_is_an_error_and_not_tried_again(folder, monkeypatch):
    tries = []
    monkeypatch.setattr(aot, "_compile", lambda function, example, folder, key: tries.append(1) or put(folder, key, b"none"))
    w = torch.zeros(3)
    add = load(torch.Tensor.add_, "add in place", (w, B))
    for _ in range(2):
        with pytest.raises(CompiledCodeError, match="cannot be used: ") as e:
            add(w, B)
        assert "\n" not in str(e.value)
    assert w.tolist() == [0, 0, 0] and len(tries) == aot.TRIES and not list(folder.iterdir())


def test_what_cannot_be_compiled_says_why_unless_memory_is_short(folder, monkeypatch):
    def fails(*_):
        raise errors.pop()

    errors = [OSError(28, "No space left on device"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate")]
    monkeypatch.setattr(aot, "_compile", fails)
    add = load(torch.add, "sum", (A, B))
    for kind in (RuntimeError, MemoryError, CompiledCodeError, CompiledCodeError):  # the last one is remembered
        with pytest.raises(kind) as e:
            add(A, B)
        assert e.type is kind
    assert str(e.value) == "a step cannot be compiled: [Errno 28] No space left on device"


WITHOUT_COMPILER = """
import json, sys
from harness.point import Point
from harness.train import Runtime, train_point
point, run_dir, runtime = json.load(sys.stdin)
asked = iter(range(99))
print(train_point(Point.from_dict(point), run_dir, Runtime(**runtime), should_stop=lambda: next(asked) == 6))
"""


def test_a_run_without_compiled_code_begins_anew_uncompiled_and_stays_so(folder, monkeypatch, tmp_path):
    """Bit for bit the eager run, in its checkpoint, in its result, and where it goes on with a compiler that works."""
    p, runtime = tiny(tmp_path / "cache", "tokens=640")
    assert train_point(p, tmp_path / "eager", runtime) == "done"
    cxx = tmp_path / "cxx"
    cxx.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exec g++ --version\necho 'x.cpp: fatal error: no room'\nexit 1\n")
    cxx.chmod(0o700)
    runtime.compile = True
    order = json.dumps([p.to_dict(), str(tmp_path / "run"), asdict(runtime)])
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], input=order, capture_output=True, text=True,
                          env={**os.environ, "CXX": str(cxx)})  # fmt: skip
    assert done.stdout == "stopped\n" and "no room; trained uncompiled" in done.stderr, done.stderr
    facts = read_checkpoint(tmp_path / "run")[1]
    assert 0 < facts["step"] < p.steps and facts["numerics"]["compiled"] is False
    monkeypatch.setattr(step, "load", None)
    assert train_point(p, tmp_path / "run", runtime) == "done"
    eager, found = (result(tmp_path / name) for name in ("eager", "run"))
    assert found["numerics"]["compiled"] is False and found["loss"] == eager["loss"]
    assert found["numerics"]["uncompiled"] == "a step cannot be compiled: x.cpp: fatal error: no room"
    assert (tmp_path / "run/curve.parquet").read_bytes() == (tmp_path / "eager/curve.parquet").read_bytes()


def test_a_run_that_has_trained_compiled_does_not_go_on_otherwise(folder, monkeypatch, tmp_path):
    """It fails, keeps its checkpoint, and goes on once its compiled code can be had; a branch of it trains alone."""
    p, runtime = tiny(tmp_path / "cache", "tokens=640")
    runtime.compile, sound = True, True

    def library(function, *_):
        def call(*tensors):
            if not sound:
                raise CompiledCodeError("a step cannot be compiled: no disk")
            return function(*tensors)

        return call

    monkeypatch.setattr(step, "_FUNCTIONS", {})
    monkeypatch.setattr(step, "load", library)
    assert train_point(p, tmp_path / "run", runtime, should_stop=Once(6)) == "stopped"
    step_saved = read_checkpoint(tmp_path / "run")[1]["step"]
    on_the_way = replace(runtime, until=3, trunk=True)
    assert train_point(p, tmp_path / "trunk", on_the_way) == "paused"
    sound = False
    branch = replace(runtime, start=str(tmp_path / "trunk"), first=3, root="trunk")
    assert train_point(p, tmp_path / "branch", branch) == "done"
    found = result(tmp_path / "branch")
    assert found["trunk"] is None and found["flops_spent"] == p.flops and found["numerics"]["compiled"] is False
    with pytest.raises(CompiledCodeError, match=f"no disk; the run has trained compiled up to step {step_saved} "):
        train_point(p, tmp_path / "run", runtime)
    runtime.must_compile = True
    with pytest.raises(CompiledCodeError, match="no disk; launcher.compile"):
        train_point(p, tmp_path / "never", runtime)
    assert not (tmp_path / "never/result.json").exists()
    sound, runtime.must_compile = True, False
    assert train_point(p, tmp_path / "run", runtime) == "done"
    numerics = result(tmp_path / "run")["numerics"]
    assert numerics["compiled"] is True and "uncompiled" not in numerics


def test_what_the_library_is_made_of_is_its_key(folder, whole, monkeypatch):
    """Another name, shape, type, number of threads or build is compiled; the same again is found and counts as used."""
    compiled = []
    monkeypatch.setattr(aot, "_compile", lambda function, example, folder, key: compiled.append(put(folder, key, whole))
                        or compiled[-1])  # fmt: skip
    threads = torch.get_num_threads()

    def use(name="sum", like=A, threads=threads):
        torch.set_num_threads(threads)
        load(torch.add, name, (like, like))(A, B)

    try:
        use()
        os.utime(compiled[0], (0, 0))
        use()
        assert len(compiled) == 1 and time.time() - compiled[0].stat().st_mtime < KEPT_SECONDS
        use(name="another"), use(like=torch.ones(4)), use(like=A.double()), use(threads=threads + 1)
        monkeypatch.setattr(aot, "build", lambda: "another build")
        use()
    finally:
        torch.set_num_threads(threads)
    assert len(compiled) == len(set(compiled)) == 6


def test_old_libraries_and_what_was_left_go(folder, whole, monkeypatch):
    monkeypatch.setattr(aot, "KEPT", 2)
    now = time.time()
    for name, age in (("a", 0), ("b", KEPT_SECONDS / 2), ("c", KEPT_SECONDS / 1.5), ("d", 2 * KEPT_SECONDS)):
        path = put(folder, name, whole)
        os.utime(path, (now - age, now - age))
    for name, age in (("tmp1", 2 * aot.LEFT_SECONDS), ("tmp2", 0)):
        (folder / name).mkdir()
        os.utime(folder / name, (now - age, now - age))
    aot._clean(folder)
    assert sorted(path.name[0] if path.suffix else path.name for path in folder.iterdir()) == ["a", "b", "tmp2"]
