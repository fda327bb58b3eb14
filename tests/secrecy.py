"""Secrets set everywhere a tool looks for them, and the search for them in every byte of what a command left behind."""

from __future__ import annotations

import base64
from pathlib import Path

SECRETS = {
    "WANDB_API_KEY": "f00dfeed" * 5,
    "HF_TOKEN": "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ012345",
    "HUGGING_FACE_HUB_TOKEN": "hf_ZyXwVuTsRqPoNmLkJiHgFeDcBa987654",
    "MY_SERVICE_API_KEY": "sk-my+service/key=0123",
    "LAB_PASSWORD": "correct-horse-battery",
    "CLIENT_SECRET": "clientele-0a1b2c3d4e",
}
NETRC, TOKEN_FILE = "c0ffee11" * 5, "hf_FromTheTokenFile0123456789abcdef"


def environment(home: Path) -> dict[str, str]:
    """Variables with every secret, and a home folder with those that tools keep in files."""
    (home / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)
    (home / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {NETRC}\n")
    (home / ".netrc").chmod(0o600)
    (home / ".cache" / "huggingface" / "token").write_text(TOKEN_FILE)
    return {**SECRETS, "HOME": str(home)}


def found_in(*folders: Path) -> list[str]:
    """`NAME in PATH` for each secret in the bytes or the name of a file below `folders`."""
    named = {**SECRETS, ".netrc": NETRC, "token file": TOKEN_FILE}
    wanted = {(name, form) for name, value in named.items()
              for form in (value.encode(), base64.b64encode(value.encode()).rstrip(b"="))}  # fmt: skip
    files = [path for folder in folders for path in ([folder] if folder.is_file() else folder.rglob("*"))]
    assert files, "nothing was left behind to be searched"
    hits = []
    for path in files:
        content = str(path).encode() + (path.read_bytes() if path.is_file() else b"")
        hits += [f"{name} in {path}" for name, form in wanted if form in content]
    return sorted(hits)
