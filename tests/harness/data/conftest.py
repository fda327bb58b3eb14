import pytest

from harness.config import DataConfig


@pytest.fixture
def text_folder(tmp_path):
    """A folder of 40 text files and the DataConfig that reads it."""
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i:02d}.txt").write_text(f"Document {i}. " + "word " * (20 + i) + "ünïcode\n", encoding="utf-8")
    return DataConfig(name="files", path=str(folder), validation_fraction=0.2)
