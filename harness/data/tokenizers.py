"""Text to token ids: raw bytes, a BPE trained on the corpus, or any `tokenizer.json`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from harness.errors import UserError

PIECE = 1 << 20  # bytes of text encoded at a time: an Encoding costs about 100 bytes per token
SAMPLE_BYTES = 32 << 20  # text that a BPE is trained on
END = "<|endoftext|>"
# How common tokenizers call the end of a document.
_KNOWN_ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]")


class Tokenizer(Protocol):
    """`id` names the content (never a path) and enters the corpus' fingerprint; `end` closes every document."""

    id: str
    vocab: int
    end: int

    def encode(self, documents: list[bytes]) -> list[np.ndarray]:
        """Token ids of each UTF-8 document, the end-of-document token last."""


class Bytes:
    """One token per byte of UTF-8. 0xFF never occurs in UTF-8, so it closes documents and the vocabulary is 256: a
    round number without padding rows, which would count as parameters and FLOPs."""

    id, vocab, end = "bytes", 256, 255

    def encode(self, documents: list[bytes]) -> list[np.ndarray]:
        return [np.frombuffer(d + b"\xff", np.uint8) for d in documents]


class FromFile:
    """A Hugging Face `tokenizer.json`. Special tokens are not added, and are not recognised inside the text."""

    def __init__(self, content: bytes, where: str):
        from tokenizers import Tokenizer as Backend

        try:
            self._backend = Backend.from_str(content.decode())
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"{where} is no tokenizer.json: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.id = content_id(content)
        self.vocab, self.end = _vocab_and_end(json.loads(content))

    def encode(self, documents: list[bytes]) -> list[np.ndarray]:
        pieces = [list(_pieces(d)) for d in documents]
        encodings = iter(self._backend.encode_batch_fast([p for d in pieces for p in d], add_special_tokens=False))
        out = []
        for document in pieces:
            ids = [np.asarray(next(encodings).ids, np.uint32) for _ in document]
            out.append(np.concatenate([*ids, np.array([self.end], np.uint32)]))
        return out


def content_id(content: bytes) -> str:
    """Hash of a tokenizer.json that layout and key order do not change."""
    canonical = json.dumps(json.loads(content), sort_keys=True, ensure_ascii=True).encode()
    return "tokenizer-" + hashlib.blake2b(canonical, digest_size=8).hexdigest()


def read_tokenizer_file(path: str) -> bytes:
    """The content of a tokenizer.json. Raises UserError where there is none or it has no vocabulary."""
    where = Path(os.path.expanduser(path))
    if not where.is_file():
        raise UserError(f"data.tokenizer={path} is neither bytes, bpe nor the path of a tokenizer.json")
    try:
        content = where.read_bytes()
        value = json.loads(content)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read data.tokenizer={path}: {error}") from None
    try:
        _vocab_and_end(value)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise UserError(f"data.tokenizer={path} is no tokenizer.json: it has no model with a vocabulary") from None
    return content


def file_vocab(content: bytes) -> int:
    """Vocabulary of a tokenizer.json, without building it: highest id + 1, one more where it has no end token."""
    return _vocab_and_end(json.loads(content))[0]


def _vocab_and_end(value: dict) -> tuple[int, int]:
    vocab = value["model"]["vocab"]
    # Unigram models list [token, score]; the others map token to id.
    ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    ids |= {token["content"]: token["id"] for token in value.get("added_tokens") or []}
    size = max(ids.values(), default=-1) + 1
    end = next((ids[name] for name in _KNOWN_ENDS if name in ids), size)
    return max(size, end + 1), end


def train_bpe(sample: Iterable[bytes], vocab: int) -> bytes:
    """A byte-level BPE of exactly `vocab` tokens as the content of a tokenizer.json; `<|endoftext|>` is token 0.

    Raises UserError where `vocab` is below 257 (256 bytes and the end token) or the sample yields fewer merges.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((p for d in sample for p in _pieces(d)), trainer)
    if backend.get_vocab_size() != vocab:
        raise UserError(
            f"data.vocab={vocab}: this text yields a BPE of {backend.get_vocab_size()} tokens; set data.vocab to that"
        )
    return backend.to_str().encode()


def _pieces(document: bytes) -> Iterator[str]:
    """A document in pieces of at most PIECE bytes, cut at line ends where possible, so that memory stays bounded."""
    start = 0
    while len(document) - start > PIECE:
        end = document.rfind(b"\n", start, start + PIECE) + 1
        if end <= start:
            end = start + PIECE
            while document[end] & 0xC0 == 0x80:
                end -= 1
        yield document[start:end].decode()
        start = end
    yield document[start:].decode()
