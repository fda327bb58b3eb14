"""What goes in comes out: token ids decode to the text, documents end with the end token, sizes are as said."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from harness.data import locate, prepare, tokenizers, vocab_of
from harness.data.reading import utf8
from harness.data.tokenizers import Bytes, FromFile, file_vocab, train_bpe
from harness.errors import UserError

WORDS = [word + ending for word in ("scale", "law", "width", "token", "batch") for ending in ("", "s", "ing")]
TEXT = [
    " ".join(WORDS) * 9,
    "The quick brown fox, größer than the lazy dog. " * 30,
    "def f(x):\n    return x + 1\n" * 30,
]
STRANGE = ["", "<|endoftext|> is text here", "日本語 🎉\n\n\t x", "a\n" * 700_000, "b" * 1_100_000]
NO_TOKENIZER = [b"{", b"[]", b'{"version": "1.0"}', b'{"model": {"type": "BPE"}}', b'{"model": 3}']


@given(st.text() | st.binary())
def test_bytes_never_hold_the_end_token(text):
    document = utf8(text)
    (ids,) = Bytes().encode([document])
    assert ids[-1] == Bytes.end and Bytes.end not in ids[:-1] and bytes(ids[:-1]) == document


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([t.encode() for t in TEXT], 320)


@pytest.mark.parametrize("text", [*TEXT, *STRANGE], ids=lambda text: text[:9])
def test_bpe_encodes_any_text_without_loss(bpe, text):
    tokenizer, backend = FromFile(bpe, "test"), Backend.from_str(bpe.decode())
    assert tokenizer.vocab == 320 and tokenizer.end == backend.token_to_id("<|endoftext|>")
    ids = tokenizer.encode([text.encode(), b"other"])[0]
    assert ids[-1] == tokenizer.end and tokenizer.end not in ids[:-1] and ids.max() < 320
    assert backend.decode(ids[:-1].tolist()) == text


def test_bpe_is_the_same_in_every_process(bpe):
    code = f"from harness.data.tokenizers import *; print(content_id(train_bpe([t.encode() for t in {TEXT!r}], 320)))"
    said = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
    assert said == tokenizers.content_id(bpe)


def test_bpe_of_a_text_too_small_says_how_large_it_can_be():
    with pytest.raises(UserError, match="yields a BPE of 2.. tokens"):
        train_bpe([b"aa ab"], 1000)


def test_a_prepared_bpe_corpus_is_the_text(text_folder, tmp_path):
    data = dataclasses.replace(text_folder, tokenizer="bpe", vocab=280)
    corpus = prepare(data, tmp_path, lambda message: None)
    assert corpus.vocab == 280 == vocab_of(data) and corpus.dtype == "<u2"
    backend = Backend.from_file(str(corpus.dir / "tokenizer.json"))
    ids = np.concatenate(corpus.arrays("validation"))
    ends = np.flatnonzero(ids == 0)
    assert len(ends) == corpus.documents["validation"]
    assert backend.decode(ids[: ends[0]].tolist()).startswith("Document ")
    # The same tokenizer given as a file makes the same corpus, wherever it lies.
    given_file = tmp_path / "mine.json"
    given_file.write_text(json.dumps(json.loads((corpus.dir / "tokenizer.json").read_text()), indent=3))
    by_path = dataclasses.replace(data, tokenizer=str(given_file), vocab=None)
    assert prepare(by_path, tmp_path, lambda message: None).fingerprint == corpus.fingerprint
    assert locate(by_path, tmp_path).fingerprint == corpus.fingerprint


def test_a_tokenizer_file_without_an_end_token_gets_one(bpe):
    value = json.loads(bpe)
    value["added_tokens"] = []
    vocab = value["model"]["vocab"]
    vocab["<other>"] = vocab.pop("<|endoftext|>")
    content = json.dumps(value).encode()
    assert file_vocab(content) == 321 == FromFile(content, "test").vocab
    assert FromFile(content, "test").encode([b"x"])[0][-1] == 320


def test_truncation_and_padding_in_the_file_are_ignored(bpe):
    value = json.loads(bpe)
    value["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    value["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "x"}  # fmt: skip
    tokenizer = FromFile(json.dumps(value).encode(), "test")
    assert [len(ids) for ids in tokenizer.encode([b"x", TEXT[0].encode()])] == [
        len(ids) for ids in FromFile(bpe, "test").encode([b"x", TEXT[0].encode()])
    ]


@pytest.mark.parametrize("content", NO_TOKENIZER)
def test_a_file_that_is_no_tokenizer_is_refused(text_folder, tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    data = dataclasses.replace(text_folder, tokenizer=str(tmp_path / "t.json"))
    with pytest.raises(UserError, match="tokenizer"):
        prepare(data, tmp_path / "cache", lambda message: None)
