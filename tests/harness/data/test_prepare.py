"""A corpus is prepared once, whole, in bounded memory, whatever happens meanwhile."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from harness.config import DataConfig
from harness.data import corpus as corpus_module
from harness.data import fill, locate, open_corpus, prepare, unprepared_fingerprint, vocab_of
from harness.errors import UserError


def quiet(message):
    pass


def tokens(corpus, split):
    return np.concatenate(corpus.arrays(split))


def test_documents_are_whole_and_on_one_side(text_folder, tmp_path):
    corpus = prepare(text_folder, tmp_path, quiet)
    sides = {s: bytes(tokens(corpus, s)).split(b"\xff")[:-1] for s in ("train", "validation")}
    texts = [p.read_bytes() for p in sorted(Path(text_folder.path).iterdir())]
    assert sorted(sides["train"] + sides["validation"]) == sorted(texts)
    assert not set(sides["train"]) & set(sides["validation"])
    assert 1 <= len(sides["validation"]) < 20 and corpus.documents == {s: len(d) for s, d in sides.items()}
    assert corpus.train_tokens + corpus.validation_tokens == sum(len(t) + 1 for t in texts)
    assert [d for d in texts if d in set(sides["train"])] == sides["train"], "documents keep the source's order"


def test_the_fingerprint_is_content_not_place(text_folder, tmp_path):
    first = prepare(text_folder, tmp_path / "a", quiet)
    moved = dataclasses.replace(text_folder, path=str(tmp_path / "moved"))
    shutil.copytree(text_folder.path, moved.path)
    assert prepare(moved, tmp_path / "b", quiet).fingerprint == first.fingerprint
    lines = tmp_path / "same.jsonl"
    texts = [p.read_text("utf-8") for p in sorted(Path(moved.path).iterdir())]
    lines.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    as_lines = dataclasses.replace(text_folder, path=str(lines))
    assert prepare(as_lines, tmp_path, quiet).fingerprint == first.fingerprint
    for change in ({"validation_fraction": 0.5}, {"max_bytes": 1000}, {"tokenizer": "bpe", "vocab": 260}):
        assert prepare(dataclasses.replace(moved, **change), tmp_path, quiet).fingerprint != first.fingerprint


def test_seed_and_epochs_do_not_matter(text_folder, tmp_path):
    corpus = prepare(text_folder, tmp_path, quiet)
    assert locate(dataclasses.replace(text_folder, seed=7, epochs=3.0), tmp_path) == corpus


def test_locate_notices_a_changed_source_and_leaves_the_old_corpus(text_folder, tmp_path):
    assert locate(text_folder, tmp_path / "cache") is None and not (tmp_path / "cache").exists()
    old = prepare(text_folder, tmp_path / "cache", quiet)
    assert locate(text_folder, tmp_path / "cache") == old
    (Path(text_folder.path) / "new.txt").write_text("one more document")
    assert locate(text_folder, tmp_path / "cache") is None
    new = prepare(text_folder, tmp_path / "cache", quiet)
    assert new.fingerprint != old.fingerprint and open_corpus(old.dir) == old


def test_a_small_corpus_has_a_validation_document_all_the_same(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"document {i}")
    for fraction in (1e-9, 1 - 1e-9):
        data = DataConfig(name="files", path=str(tmp_path / "*.txt"), validation_fraction=fraction)
        corpus = prepare(data, tmp_path / "cache", quiet)
        assert sorted(corpus.documents.values()) == [1, 2]


def test_one_document_cannot_be_split(tmp_path):
    (tmp_path / "a.txt").write_text("alone")
    (tmp_path / "b.txt").write_text("alone")
    with pytest.raises(UserError, match="fewer than two different documents"):
        prepare(DataConfig(name="files", path=str(tmp_path)), tmp_path / "cache", quiet)
    assert not any(p.is_dir() for p in (tmp_path / "cache" / "data").iterdir())


def test_max_bytes_stops_after_the_document_that_reaches_it(text_folder, tmp_path):
    sizes = [p.stat().st_size for p in sorted(Path(text_folder.path).iterdir())]
    limit = sum(sizes[:10]) - 3
    corpus = prepare(dataclasses.replace(text_folder, max_bytes=limit), tmp_path, quiet)
    assert sum(corpus.documents.values()) == 10 and corpus.text_bytes == sum(sizes[:10])


def test_a_bad_file_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' * 5 + "bad\n")
    with pytest.raises(UserError, match="a.jsonl, line 6"):
        prepare(DataConfig(name="files", path=str(tmp_path / "a.jsonl")), tmp_path / "cache", quiet)
    assert not any(p.is_dir() for p in (tmp_path / "cache" / "data").iterdir())


def test_a_cache_that_cannot_be_written_is_named(text_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot prepare"):
        prepare(text_folder, tmp_path / "file", quiet)


def flip(path, position=-3):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped bit": flip,
    "cut short": lambda p: p.write_bytes(p.read_bytes()[:-5]),
    "missing": lambda p: p.unlink(),
    "empty": lambda p: p.write_bytes(b""),
}


@pytest.mark.parametrize("file", ["train-00000.bin", "validation-00000.bin", "manifest.json"])
@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_named_and_prepare_mends_it(text_folder, tmp_path, file, how):
    corpus = prepare(text_folder, tmp_path, quiet)
    before = {p.name: p.read_bytes() for p in corpus.dir.iterdir() if p.name != corpus_module.VERIFIED}
    DAMAGE[how](corpus.dir / file)
    with pytest.raises(UserError, match=f"{file}.*delete the folder"):
        open_corpus(corpus.dir).verify()
    heard = []
    assert prepare(text_folder, tmp_path, heard.append) == corpus
    assert file in heard[0] and "preparing it again" in heard[0]
    assert {p.name: p.read_bytes() for p in corpus.dir.iterdir() if p.name != corpus_module.VERIFIED} == before


def test_every_flipped_bit_of_the_manifest_is_seen(text_folder, tmp_path):
    corpus = prepare(text_folder, tmp_path, quiet)
    path = corpus.dir / "manifest.json"
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        flip(path, position)
        try:
            assert open_corpus(corpus.dir) == corpus  # a bit of white space may flip to other white space
        except UserError:
            pass
        path.write_bytes(whole)


def test_checksums_are_taken_once_per_state_of_the_files(text_folder, tmp_path, monkeypatch):
    corpus = prepare(text_folder, tmp_path, quiet)
    taken = []
    monkeypatch.setattr(corpus_module, "checksum", lambda path: taken.append(path) or "")
    prepare(text_folder, tmp_path, quiet)
    assert not taken
    with pytest.raises(UserError):
        corpus.verify(again=True)
    assert taken


SCRIPT = textwrap.dedent("""
    import os, resource, signal, sys
    from pathlib import Path
    from harness.config import DataConfig
    from harness.data import fill, prepare, shards
    fill.SHARD_TOKENS, fill.BATCH_BYTES, fill.CHECKPOINT_BYTES = 1000, 100, 300
    path, cache, tokenizer, where, count = sys.argv[1:]
    def dying(call, left=[int(count)]):
        def wrapped(*args, **keys):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **keys)
        return wrapped
    if where == "append":
        shards.SplitWriter.append = dying(shards.SplitWriter.append)
    if where == "fsync":
        os.fsync = dying(os.fsync)
    if where == "full":  # a shard cannot grow beyond 900 bytes: what a full disk looks like from here
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
    if where == "replace":
        os.replace = dying(os.replace)
    data = DataConfig(name="files", path=path, validation_fraction=0.2, tokenizer=tokenizer,
                      vocab=270 if tokenizer == "bpe" else None)
    print(prepare(data, Path(cache)).fingerprint)
""")


def run(*args):
    return subprocess.run([sys.executable, "-c", SCRIPT, *map(str, args)], capture_output=True, text=True)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_killed_at_any_moment_it_goes_on_to_the_same_corpus(text_folder, tmp_path, tokenizer):
    undisturbed = run(text_folder.path, tmp_path / "calm", tokenizer, "", 0).stdout.split()[-1]
    went_on = 0
    for where, count in (("append", 15), ("append", 38), ("fsync", 6), ("fsync", 21), ("replace", 5)):
        cache = tmp_path / f"{where}{count}"
        killed = run(text_folder.path, cache, tokenizer, where, count)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        resumed = run(text_folder.path, cache, tokenizer, "", 0)
        assert resumed.stdout.split()[-1] == undisturbed, resumed.stderr
        went_on += "going on after" in resumed.stdout
        files = [sorted(p.name for p in (tmp_path / c / "data").glob("*/*")) for c in ("calm", cache.name)]
        assert files[0] == files[1], "nothing is left over"
    assert went_on == 5
    # Killed many times over in one cache, each time a little later.
    for count in range(2, 40, 9):
        run(text_folder.path, tmp_path / "often", tokenizer, "fsync", count)
    assert run(text_folder.path, tmp_path / "often", tokenizer, "", 0).stdout.split()[-1] == undisturbed


def test_a_checkpoint_that_promises_more_than_the_shards_hold_is_not_believed(text_folder, tmp_path):
    undisturbed = run(text_folder.path, tmp_path / "calm", "bytes", "", 0).stdout.split()[-1]
    run(text_folder.path, tmp_path / "hurt", "bytes", "append", 30)
    newest = sorted((tmp_path / "hurt" / "data").glob("*/train-*.bin"))[-1]
    newest.write_bytes(b"")
    assert run(text_folder.path, tmp_path / "hurt", "bytes", "", 0).stdout.split()[-1] == undisturbed


def test_two_processes_prepare_once(tmp_path):
    (tmp_path / "big.txt").write_text("".join(f"paragraph {i} " + "word " * 200 + "\n\n" for i in range(20_000)))
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from harness.config import DataConfig
        from harness.data import prepare
        while time.time() < float(sys.argv[3]): pass
        heard = []
        corpus = prepare(DataConfig(name="files", path=sys.argv[1]), Path(sys.argv[2]), heard.append)
        print(corpus.fingerprint, sum("training and" in h for h in heard), sum("waiting" in h for h in heard))
    """)
    args = [sys.executable, "-c", script, str(tmp_path / "big.txt"), str(tmp_path / "cache"), str(time.time() + 2)]
    processes = [subprocess.Popen(args, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [p.communicate()[0].split() for p in processes]
    assert len({s[0] for s in said}) == 1
    assert sorted(s[1] for s in said) == ["0", "0", "1"], "one process prepared"
    assert {s[1] + s[2] for s in said} == {"10", "01"}, "the others waited"


def test_a_source_that_changes_while_it_is_read_is_refused(text_folder, tmp_path, monkeypatch):
    real = fill.Filling._read_all

    def changing(self):
        real(self)
        (Path(text_folder.path) / "late.txt").write_text("late")

    monkeypatch.setattr(fill.Filling, "_read_all", changing)
    with pytest.raises(UserError, match="changed while it was read"):
        prepare(text_folder, tmp_path / "cache", quiet)


def test_a_full_disk_is_named_and_the_next_run_goes_on(text_folder, tmp_path):
    undisturbed = run(text_folder.path, tmp_path / "calm", "bytes", "", 0).stdout.split()[-1]
    full = run(text_folder.path, tmp_path / "full", "bytes", "full", 0)
    assert full.stderr.strip().splitlines()[-1].startswith("models.errors.UserError: cannot prepare data=files in")
    assert "Exception ignored" not in full.stderr
    after = run(text_folder.path, tmp_path / "full", "bytes", "", 0)
    assert after.stdout.split()[-1] == undisturbed and "going on after" in after.stdout


@pytest.mark.parametrize("ending", ["txt", "parquet", "jsonl.zst"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, ending):
    """The short form of "2 GB under 1 GB of memory": 120 MB may not cost 60 MB more than 12 MB do."""
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from harness.config import DataConfig
        from harness.data import prepare
        path = Path(sys.argv[1])
        prepare(DataConfig(name="files", path=str(path)), path.parent / "cache", lambda message: None)
        # Not getrusage: its peak is inherited from the process that forked.
        print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
    """)
    peak = []
    for megabytes in (12, 120):
        path = tmp_path / f"{megabytes}.{ending}"
        write_corpus(path, megabytes)
        peak.append(int(subprocess.check_output([sys.executable, "-c", script, str(path)])))
        path.unlink()
    assert peak[1] - peak[0] < 60 and peak[1] < 300, peak


def write_corpus(path, megabytes):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = (
        f"paragraph {i} {os.urandom(4).hex()} " + "some words of text " * 540 + "\n\n" for i in range(megabytes * 100)
    )
    if path.suffix == ".parquet":
        texts = list(texts)
        pq.write_table(pa.table({"text": texts}), path, row_group_size=len(texts), compression="zstd")
    elif path.suffix == ".zst":
        lines = "".join(json.dumps({"text": t}) + "\n" for t in texts)
        with pa.output_stream(path, compression="zstd") as f:
            f.write(lines.encode())
    else:
        path.write_text("".join(texts))


def test_vocab_is_known_without_the_data():
    hub = DataConfig(name="hf", path="nobody/large")
    assert vocab_of(hub) == 256
    assert vocab_of(dataclasses.replace(hub, tokenizer="bpe", vocab=32000)) == 32000
    assert vocab_of(dataclasses.replace(hub, tokenizer="elsewhere/tokenizer.json", vocab=50257)) == 50257
    assert vocab_of(dataclasses.replace(hub, tokenizer="elsewhere/tokenizer.json")) is None
    assert vocab_of(DataConfig(name="markov", states=10)) == 10
    assert locate(hub, Path(os.devnull)) is None, "planning needs neither network nor data"
    assert unprepared_fingerprint(hub) == unprepared_fingerprint(dataclasses.replace(hub, seed=3, epochs=2.0))
    assert unprepared_fingerprint(hub) != unprepared_fingerprint(dataclasses.replace(hub, path="nobody/other"))


@pytest.mark.parametrize(
    "keys, says",
    [({"tokenizer": "bpe"}, "needs data.vocab"), ({"tokenizer": "bpe", "vocab": 100}, "at least 257"),
     ({"vocab": 512}, "has 256 tokens"), ({"tokenizer": "no/such.json"}, "neither bytes, bpe nor")],
)  # fmt: skip
def test_a_tokenizer_that_cannot_be_is_refused(tmp_path, keys, says):
    with pytest.raises(UserError, match=says):
        prepare(DataConfig(**keys), tmp_path / "cache", quiet)
    assert not (tmp_path / "cache").exists()
