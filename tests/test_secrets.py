"""No token in a run directory, a log, wandb's files, a message: real commands with secrets set everywhere."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from harness.compose import compose
from harness.errors import UserError
from harness.redact import redact, redact_all

from .secrecy import NETRC, SECRETS, TOKEN_FILE, environment, found_in
from .support import wait_for

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    "data=markov data.states=16 data.tokens=200000 data.epochs=100 model.width=16 model.depth=1 model.context=32 "
    "batch_size=4 tokens=8192 validation.tokens=512 precision=fp32 launcher.compile=never device=cpu"
).split()


def hyperlaw(tmp_path, *words, **more):
    env = {**os.environ, **environment(tmp_path / "home"), "HYPERLAW_CACHE": str(tmp_path / "cache"), **more}
    command = [sys.executable, "-m", "harness.cli", *words]
    return subprocess.run(command, cwd=tmp_path, env={**env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          timeout=300)  # fmt: skip


@pytest.fixture
def known(tmp_path, monkeypatch):
    for name, value in environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("NETRC", raising=False)


def test_what_is_secret_and_what_is_not(known, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "sequential")
    monkeypatch.setenv("MAX_TOKENS", "1000000")
    monkeypatch.setenv("HF_TOKEN_PATH", "/data/secretplace")
    for value in (*SECRETS.values(), NETRC, TOKEN_FILE):
        assert redact(f"cannot read {value}.") == "cannot read ***."
    for text, clean in (
        ("https://me:pa55@host/x", "https://***@host/x"),
        ("git+ssh://tok3n@host/x", "git+ssh://***@host/x"),
        ("https://host/x?a=1&token=abc&b=2", "https://host/x?a=1&token=***&b=2"),
        ("s3?X-Amz-Signature=abc123", "s3?X-Amz-Signature=***"),
        ("Authorization: Bearer abcdefgh123", "Authorization: Bearer ***"),
        ("export OTHER_API_KEY='a b'; go", "export OTHER_API_KEY=***; go"),
        ("a_long_name.LAB_" + "X" * 300 + "_TOKEN_1 = abc", "a_long_name.LAB_" + "X" * 300 + "_TOKEN_1 = ***"),
        ("sk-my%2Bservice%2Fkey%3D0123", "***"),
        ("hf_someone0Elses0Token", "***"),
        ("clear\x1b[2Jed\x07", "clear[2Jed"),
    ):
        assert redact(text) == clean
    for text in ("tokens=1000000 batch_tokens=4096 data.tokenizer=bpe", "sequential", "/data/secretplace",
                 "data.path=/a/b@c/d", "~/x.txt: the disk is full", "two\nlines\tof text"):  # fmt: skip
        assert redact(text) == text
    assert redact_all({"setup": [f"x {NETRC}"], NETRC: 1}) == {"setup": ["x ***"], "***": 1}


@pytest.mark.parametrize("part", ["TOKEN", "A", "A=", "TOKEN=\"", "TOKEN ", "://", "://a@", "?token", "?a", "bearer ",
                                  "bearer", " ", "hf_", "hf_a", "TOKEN= "])  # fmt: skip
def test_the_time_of_a_long_text_grows_as_the_text(known, part):
    """A megabyte of a log or of an error's message, as a library may write it."""
    text = part * (1_000_000 // len(part))
    begun = time.process_time()
    redact(text)
    assert time.process_time() - begun < 3  # of minutes, where it grows as the square


def test_wandb_offline_and_the_run_directories_hold_no_secret(tmp_path):
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)  # wandb notes the remote of the folder that it is called in
    subprocess.run([*git, "remote", "add", "origin", f"https://me:{SECRETS['LAB_PASSWORD']}@localhost/x"], check=True)
    out = hyperlaw(tmp_path, "train", *TINY, "tracking=wandb", "out=out")
    assert out.returncode == 0, out.stderr
    # The tracker's process outlives the command by seconds.
    files = wait_for(lambda: [f for f in (tmp_path / "out").rglob("*.wandb") if NO_MORE in f.read_bytes()], 120, every=0.2)
    assert found_in(tmp_path / "out", tmp_path / "cache") == []
    run = b"".join(f.read_bytes() for f in files[0].parent.rglob("*") if f.is_file())
    assert b"harness.tracking" not in run and b"localhost/x" not in run  # nor the command line, nor git's remote
    assert not [w for w in (*SECRETS.values(), NETRC, TOKEN_FILE) if w in out.stdout + out.stderr]


NO_MORE = b"_runtime"  # wandb writes the summary, with it, when a run is finished


def test_errors_that_quote_a_token_are_written_without_it(tmp_path):
    """A dataset's address with a token, where opening it fails; and a worker that dies with one on its lips."""
    token = SECRETS["HF_TOKEN"]
    out = hyperlaw(tmp_path, "train", *TINY[1:], "data=hf", f"data.path=https://me:{token}@localhost:9/d?token={NETRC}",
                   "data.tokenizer=bytes", "out=out", HF_HUB_OFFLINE="1")  # fmt: skip
    assert out.returncode == 2 and "***" in out.stderr and len(out.stderr.strip().splitlines()) <= 2, out.stderr
    assert not [w for w in (*SECRETS.values(), NETRC, TOKEN_FILE) if w in out.stdout + out.stderr]
    assert hyperlaw(tmp_path, "train", *TINY, "out=out", "tokens=4096").returncode == 0
    (tmp_path / "site").mkdir()  # a fault in a library: sitecustomize is read by every Python process
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'sweeps.worker' in ' '.join(sys.orig_argv):\n"
        "    import harness.data.corpus as c\n"
        "    def verify(self, again=False):\n"
        "        print('reading with', os.environ['HF_TOKEN'])\n"
        "        raise RuntimeError('401 for ' + os.environ['WANDB_API_KEY'])\n"
        "    c.Corpus.verify = verify\n"
    )
    env = {**os.environ, **environment(tmp_path / "home"), "HYPERLAW_CACHE": str(tmp_path / "cache"),
           "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}  # fmt: skip
    failed = subprocess.run([sys.executable, "-m", "harness.cli", "train", *TINY, "out=failed"], cwd=tmp_path, env=env,
                            capture_output=True, text=True, timeout=300)  # fmt: skip
    assert failed.returncode == 1, failed.stderr
    status = json.loads(next((tmp_path / "failed" / "runs").glob("*/status.json")).read_text())
    assert status["reason"]["message"] == "401 for ***"
    log = "".join(path.read_text() for path in (tmp_path / "failed" / "logs").iterdir())
    assert "reading with ***" in log and "RuntimeError: 401 for ***" in log
    assert found_in(*(tmp_path / name for name in ("out", "failed", "cache"))) == []
    assert not [w for w in (*SECRETS.values(), NETRC, TOKEN_FILE) if w in failed.stdout + failed.stderr]


def test_a_traceback_of_the_hydra_entry_is_written_without_a_token(tmp_path):
    """A fault in a library before anything starts, of `python -m harness.train` with and without -m."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'harness.train' in sys.orig_argv:\n"
        "    import sweeps.launch\n"
        "    def prepare_plan(*_, **__):\n"
        "        print('reading with', os.environ['HF_TOKEN'])\n"
        "        raise RuntimeError('401 for ' + os.environ['WANDB_API_KEY'])\n"
        "    sweeps.launch.prepare_plan = prepare_plan\n"
    )
    env = {**os.environ, **environment(tmp_path / "home"), "HYPERLAW_CACHE": str(tmp_path / "cache"),
           "PYTHONPATH": f"{tmp_path}:{ROOT}"}  # fmt: skip
    for flag in ([], ["-m"]):
        failed = subprocess.run([sys.executable, "-m", "harness.train", *flag, *TINY], cwd=tmp_path, env=env,
                                capture_output=True, text=True, timeout=300)  # fmt: skip
        assert failed.returncode == 1 and "RuntimeError: 401 for ***" in failed.stderr, failed.stderr
        assert "reading with ***" in failed.stdout
        assert not [w for w in SECRETS.values() if w in failed.stdout + failed.stderr]


def test_a_config_of_others_cannot_fetch_a_secret(tmp_path, known, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")

    def sweep(**content):
        (tmp_path / "sweep").mkdir(exist_ok=True)
        (tmp_path / "sweep" / "theirs.yaml").write_text("# @package _global_\n" + yaml.safe_dump(content))
        return compose(["sweep=theirs"], "sweep", tmp_path)

    assert sweep(data={"name": "files", "path": "${oc.env:SCRATCH}/x"}).config.data.path == "/scratch/me/x"
    for content in (
        {"tracking": {"project": "${oc.env:WANDB_API_KEY}"}},
        {"data": {"path": "https://host/?x=${oc.env:HF_TOKEN}"}},
        {"tracking": {"entity": "${tracking.project}", "project": "${oc.decode:${oc.env:LAB_PASSWORD}}"}},
        {"sweep": {"axes": {"data.path": ["a", "${oc.env:CLIENT_SECRET}"]}}},
    ):
        with pytest.raises(UserError, match="fetches a secret") as e:
            sweep(**content)
        assert not [w for w in SECRETS.values() if w in str(e.value)]
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "theirs.yaml").write_text("project: ${oc.env:WANDB_API_KEY}\n")
    with pytest.raises(UserError, match="fetches a secret"):
        compose(["tracking=none,theirs"], "sweep", tmp_path).typed("tracking", "theirs")
