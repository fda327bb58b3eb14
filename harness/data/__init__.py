"""Data: sources of text, tokenizers, prepared corpora on disk, and the stream of windows that training reads."""

from harness.data.corpus import Corpus, open_corpus
from harness.data.prepare import locate, prepare, unprepared_fingerprint, vocab_of
from harness.data.stream import Stream

__all__ = ["Corpus", "Stream", "locate", "open_corpus", "prepare", "unprepared_fingerprint", "vocab_of"]
