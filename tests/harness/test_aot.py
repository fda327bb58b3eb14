"""Libraries of compiled steps on disk: what is damaged, broken, old or of another key."""

import hashlib
import os
import time

import pytest
import torch

from harness import aot
from harness.aot import load
from harness.build import KEPT_SECONDS

A, B = torch.ones(3), torch.arange(3.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a library that adds A and B."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        m.setattr("torch._inductor.codecache._HEADER_DIR", str(folder / "headers"))
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


def test_a_damaged_and_a_broken_library_are_compiled_anew(folder, whole, capfd):
    """The one by its digest, before it is loaded; the other, which was made so, when it cannot be loaded."""
    added = load(torch.add, "sum", (A, B))
    damaged = put(folder, added.key, whole)
    damaged.write_bytes(whole[:-1000])
    broken = put(folder, added.key, b"no library")
    assert added(A, B).tolist() == [1, 2, 3] and not broken.exists()
    sound = [path for path in folder.glob("*.so") if path == aot._sealed(folder, added.key, path)]
    assert len(sound) == 1
    assert "uncompiled" not in capfd.readouterr().err


def test_a_step_whose_libraries_all_fail_is_taken_uncompiled(folder, monkeypatch, capsys):
    tries = []
    monkeypatch.setattr(aot, "_compile", lambda function, example, folder, key: tries.append(1) or put(folder, key, b"none"))
    w = torch.zeros(3)
    add = load(torch.Tensor.add_, "add in place", (w, B))
    add(w, B), add(w, B)
    assert w.tolist() == [0, 2, 4] and len(tries) == aot.TRIES and not list(folder.iterdir())
    (line,) = capsys.readouterr().err.splitlines()
    assert "uncompiled" in line and "\n" not in line


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
