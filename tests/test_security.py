"""A run directory full of attacks, read by everything that reads run directories: nothing in it is run, nothing outside it
is written or removed, time and memory stay bounded, and what is wrong is said in a line."""

import inspect
import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import analysis.untrusted
import harness.untrusted
from harness.cli import main
from harness.data.corpus import _seal, open_corpus
from harness.errors import UserError
from harness.files import read_json, write_json
from harness.rundir import read_point, read_status
from harness.untrusted import load_yaml

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    "data=markov data.states=16 data.tokens=200000 data.epochs=100 model.width=16 model.depth=1 model.context=32 "
    "batch_size=4 tokens=8192 validation.tokens=512 precision=fp32 launcher.compile=never device=cpu"
).split()
BOTH = ["sweep", "sweep=both", "--config-dir", "mine", *TINY, "seed=0,1"]
DEEP = 200_000


class Attack:
    """Unpickling it makes a file."""

    canary = ""

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    Attack.canary = str(path)
    yield path
    assert not path.exists(), "code of the run directory was run"


def merges(depth):
    """Merge keys that stand for 9^depth values."""
    lines = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join(lines) + "\n"


def laughs(depth):
    """The same of aliases."""
    return "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, depth))


def yaml_attacks(canary):
    return {
        "object": f"columns: !!python/object/apply:os.system ['touch {canary}']\n",
        "new": f"!!python/object/new:os.system ['touch {canary}']\n",
        "module": "columns: !!python/module:this\n",
        "merges": merges(12),
        "laughs": laughs(40) + "columns: {lr: *a39}\n",
        "deep": "[" * DEEP,
        "deep_block": "- " * DEEP + "x",
        "deep_map": "{a: " * 100_000,
        "sexagesimal": "columns: {lr: " + ":".join(["1"] * 400_000) + "}\n",
        "digits": "columns: {lr: " + "9" * 900_000 + "}\n",
        "itself": "columns: &a {lr: *a}\n",
        "key": "? [[1]]\n: 2\n",
        "large": "columns: {}\n" + "#" * (2 << 20),
        "binary": "\x00\x01",
        "types": "columns: {lr: !!set {a, b}, tau: !!binary aGk=, 3: 4, when: 2020-01-01, n: 0x" + "f" * 390 + "}\n",
        "escape": 'id: "../../x"\ncolumns: {run_id: "../../../etc/x\\n\\e[2J", lr: 1}\n',
    }


def json_attacks():
    return {"deep": "[" * DEEP, "deep_map": '{"a":' * DEEP, "large": '{"status": "done", "a": "' + "x" * (65 << 20) + '"}',
            "digits": '{"status": "done", "loss": ' + "9" * 100_000 + "}", "list": "[]", "words": '{"status": ["done"]}',
            "types": '{"status": "failed", "step": "x", "attempt": [], "reason": "\\u001b[2J"}',
            "numbers": '{"status": "done", "step": 1e999, "loss": 1e999, "reason": {"message": 3}}',
            "huge": '{"status": "done", "loss": 1' + "0" * 4000 + "}"}  # fmt: skip


def parquet(field, values, metadata=None):
    schema = pa.schema([field] + [pa.field(n, pa.float64()) for n in ("tokens", "lr", "train_loss", "validation_loss")])
    table = pa.table([values] + [pa.array([0.5] * len(values))] * 4, schema=schema.with_metadata(metadata))
    pq.write_table(table, sink := io.BytesIO())
    return sink.getvalue()


def curve_attacks():
    evil = pickle.dumps(Attack())
    names = (b"arrow.py_extension_type", b"pandas.period", b"pandas.interval", b"arrow.json", b"arrow.fixed_shape_tensor")
    found = {}
    for name in names:
        marks = {b"ARROW:extension:name": name, b"ARROW:extension:metadata": evil}
        found[name.decode()] = parquet(pa.field("step", pa.float64(), metadata=marks), pa.array([1.0, 2.0]))
    found["pickle"] = evil
    found["text"] = parquet(pa.field("step", pa.string()), pa.array(["x", "y"]))
    found["digits"] = parquet(pa.field("step", pa.string()), pa.array(["1" + "0" * 100_000] * 2))
    found["pandas"] = parquet(pa.field("step", pa.float64()), pa.array([1.0]), {b"pandas": evil})
    found["pandas_json"] = parquet(pa.field("step", pa.float64()), pa.array([1.0]), {b"pandas": b"[" * DEEP})
    many = pa.table({n: pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int8()), pa.array([1.0])).cast(pa.float64())
                     for n in ("step", "tokens", "lr", "train_loss", "validation_loss")})  # fmt: skip
    sink = io.BytesIO()  # 50 million rows in a few kilobytes
    with pq.ParquetWriter(sink, many.schema) as writer:
        big = pa.concat_tables([many] * 1000)
        for _ in range(50):
            writer.write_table(big, row_group_size=1_000_000)
    found["rows"] = sink.getvalue()
    return found


def checkpoint_attacks():
    evil = pickle.dumps(Attack())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:  # as torch.save writes
        archive.writestr("archive/data.pkl", evil)
    return {"pickle": evil, "torch": packed.getvalue(), "header": struct.pack("<Q", 2**63) + b"{}",
            "long": struct.pack("<Q", 10**11) + b"{", "deep": struct.pack("<Q", DEEP) + b"[" * DEEP,
            "offsets": (lambda h: struct.pack("<Q", len(h)) + h)(
                b'{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}') + bytes(8)}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A cache, and the folder of runs of two trained points."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "mine" / "sweep").mkdir(parents=True)
    (folder / "mine" / "sweep" / "both.yaml").write_text("# @package _global_\nsweep: {name: both}\n")
    run(folder, *BOTH)
    return folder


def honest_runs(trained):
    return sorted((trained / "out" / "both" / "runs").iterdir())


def run(folder, *words, code=0, memory=None):
    """A command in a process of its own, which must end in time and in bounded memory."""
    env = {**os.environ, "HYPERLAW_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    limit = (lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory))) if memory else None
    done = subprocess.run([sys.executable, "-m", "harness.cli", *words], cwd=folder, env=env, capture_output=True, text=True,
                          timeout=240, preexec_fn=limit)  # fmt: skip
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done


def hostile(trained, tmp_path, canary):
    """The runs of one honest point and of many attacks."""
    runs = tmp_path / "runs"
    only = honest_runs(trained)[0]
    honest = Path(shutil.copytree(only, runs / only.name))
    status = json.loads((honest / "status.json").read_text())  # whoever sends attacks seals them, or leaves the seals out
    (honest / "status.json").write_text(json.dumps({k: v for k, v in status.items() if k != "sealed"}))
    attacks = [("point.yaml", yaml_attacks(canary)), ("status.json", json_attacks()), ("result.json", json_attacks()),
               ("curve.parquet", curve_attacks())]  # fmt: skip
    for name, contents in attacks:
        for kind, content in contents.items():
            folder = shutil.copytree(honest, runs / f"{name.partition('.')[0]}_{kind}")
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
            if name != "point.yaml":  # a run of its own
                text = (folder / "point.yaml").read_text()
                (folder / "point.yaml").write_text(text.replace(f"run_id: {only.name}", f"run_id: {folder.name}", 1))
    for name in ("point.yaml", "status.json", "result.json", "curve.parquet"):
        folder = shutil.copytree(honest, runs / f"pipe_{name}")
        (folder / name).unlink()
        os.mkfifo(folder / name)  # whoever opens it waits for ever
        folder = shutil.copytree(honest, runs / f"device_{name}")
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")
    return runs


def text_bomb(kind):
    """A parquet file of some kilobytes with one text of 100 kB in 40,000 rows: as strings, as a dictionary or bytes, in row
    groups that each hold it again, or of fixed length."""
    big, rows = b"x" * 100_000, np.zeros(40_000, np.int8)
    sink, numbers = io.BytesIO(), pa.array(np.full(len(rows), 2.0))
    texts = pa.DictionaryArray.from_arrays(pa.array(rows), pa.array([big if kind == "bytes" else big.decode()]))
    table = pa.table({"run_id": texts, "lr": numbers, "loss": numbers})
    if kind == "fixed":
        few = pa.table({"run_id": pa.array([big] * 50, pa.binary(len(big))), "lr": numbers[:50]})
        with pq.ParquetWriter(sink, few.schema, compression="zstd") as writer:
            for _ in range(400):
                writer.write_table(few)
    else:
        pq.write_table(table, sink, compression="zstd", store_schema=kind == "dictionary",
                       row_group_size=1000 if kind == "groups" else None)  # fmt: skip
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["strings", "dictionary", "groups", "bytes", "fixed"])
def test_a_small_file_of_much_text_is_refused(tmp_path, capsys, kind):
    content = text_bomb(kind)
    assert len(content) < 1 << 20
    (tmp_path / "t.parquet").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["fit", "analysis=lr", f"table={tmp_path / 't.parquet'}", f"out={tmp_path}"]) == 2
    said = capsys.readouterr().err.strip()
    assert "more than" in said and len(said.splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # in KiB


def test_every_reader_survives_a_hostile_folder_of_runs(trained, tmp_path, canary):
    runs = hostile(trained, tmp_path, canary)
    table = run(trained, "table", f"runs={runs}", "--out", str(tmp_path / "t.csv"), memory=8 << 30)
    honest = honest_runs(trained)[0].name
    assert honest not in table.stderr and len(table.stderr.splitlines()) < 60
    for kind in ("object", "merges", "deep", "sexagesimal", "large"):
        assert f"run point_{kind}: point.yaml cannot be read" in table.stderr
    assert all(len(line) < 200 and "\x1b" not in line for line in table.stderr.splitlines())
    out = subprocess.run([sys.executable, "-c", CURVES, str(runs)], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
                         capture_output=True, timeout=240)  # fmt: skip
    assert out.returncode == 0, out.stderr
    for kind in ("curve_rows", "curve_pickle", "curve_text", "curve_digits", "curve_pandas.period"):
        assert f"run {kind}: curve.parquet cannot be read" in out.stdout, kind
    assert honest not in out.stdout


CURVES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (8 << 30,) * 2)
from analysis.curves.read import read_curves
print("\\n".join(read_curves(sys.argv[1]).attrs["damaged"]))
"""


def test_a_hostile_run_is_trained_anew_or_refused_in_a_line(trained, tmp_path, canary):
    """The sweep's own command on run directories where somebody left pickles, oversized headers and damaged statuses."""
    for only, status in zip(honest_runs(trained), ("deep_map", "types"), strict=True):
        run_dir = tmp_path / "runs" / only.name
        (run_dir / "checkpoints").mkdir(parents=True)
        for step, content in enumerate(checkpoint_attacks().values(), start=1):
            (run_dir / "checkpoints" / f"step-{step:09d}.safetensors").write_bytes(content)
        os.mkfifo(run_dir / "checkpoints" / "step-000000099.safetensors")
        (run_dir / "attempts").mkdir()
        (run_dir / "attempts" / "000001.json").write_text(json.dumps({"pid": [1], "machine": {}, "start": "x"}))
        (run_dir / "attempts" / "²³.json").write_text("{}")
        (run_dir / "status.json").write_text(json_attacks()[status])
        os.utime(run_dir / "attempts" / "000001.json", (0, 0))
    done = run(trained, *BOTH, f"runs={tmp_path / 'runs'}", memory=16 << 30)
    assert "2 done" in done.stdout and len(done.stdout.splitlines()) <= 20
    for only in honest_runs(trained):
        assert read_json(tmp_path / "runs" / only.name / "result.json")["loss"] == read_json(only / "result.json")["loss"]


def test_nothing_is_written_or_removed_through_a_link(trained, tmp_path):
    precious = []
    for only, name in zip(honest_runs(trained), ("checkpoints", "attempts"), strict=True):
        elsewhere = tmp_path / f"elsewhere_{name}"
        (elsewhere / "000000").mkdir(parents=True)
        precious += [elsewhere / "000000" / "thesis.tex", elsewhere / "step-000000001.safetensors"]
        run_dir = tmp_path / "runs" / only.name
        run_dir.mkdir(parents=True)
        (run_dir / name).symlink_to(elsewhere)
    for path in precious:
        path.write_text("mine")
    done = run(trained, *BOTH, f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}", code=1)
    said = done.stdout + done.stderr
    assert all(f"{only.name}/{name} is a link" in said
               for only, name in zip(honest_runs(trained), ("checkpoints", "attempts"), strict=True)), said  # fmt: skip
    assert [path.read_text() for path in precious] == ["mine"] * 4
    for folder in tmp_path.glob("elsewhere_*"):
        assert sorted(p.name for p in folder.iterdir()) == ["000000", "step-000000001.safetensors"]


def test_the_readers_of_both_packages_are_the_same():
    """analysis imports nothing of harness; a mend of one is a mend of the other."""
    for name in ("_Loader", "read_bytes", "load_json", "levels", "load_yaml"):
        ours, theirs = (inspect.getsource(getattr(module, name)) for module in (harness.untrusted, analysis.untrusted))
        assert ours == theirs, name
    for name in ("DEEPEST", "LONGEST_NUMBER", "YAML_LIMIT"):
        assert getattr(harness.untrusted, name) == getattr(analysis.untrusted, name)
    for loader in (harness.untrusted._Loader, analysis.untrusted._Loader):
        assert loader.yaml_constructors["tag:yaml.org,2002:int"] is loader.whole


def test_a_temporary_that_is_a_link_is_not_written_through(tmp_path, monkeypatch):
    target = tmp_path / "bashrc"
    target.write_text("mine")
    monkeypatch.setattr("threading.get_ident", lambda: 7)
    (tmp_path / f".status.json.{os.getpid()}.7.tmp").symlink_to(target)
    write_json(tmp_path / "status.json", {"status": "done"})
    assert target.read_text() == "mine" and read_status(tmp_path)["status"] == "done"


@pytest.mark.parametrize("change", [
    {"file": "../secret.bin"}, {"file": "/etc/passwd"}, {"file": ".."}, {"file": 3}, {"file": "a\0b"}, {"tokens": -1},
    {"tokens": 1e3}, {"dtype": "O"}, {"dtype": "<f8"}, {"dtype": ["<u2"]}, {"shards": []},
])  # fmt: skip
def test_a_manifest_of_others_names_tokens_in_its_own_folder(trained, tmp_path, change):
    """Sealed anew by whoever sent it, over a file that is there and of the right size."""
    folder = Path(shutil.copytree(next((trained / "cache" / "data").glob("*/manifest.json")).parent, tmp_path / "corpus"))
    assert open_corpus(folder).train_tokens > 0
    value = json.loads((folder / "manifest.json").read_text())
    value.pop("seal")
    first = value["shards"]["train"][0]
    shutil.copy(folder / first["file"], tmp_path / "secret.bin")
    for key, new in change.items():
        (first if key in first else value)[key] = new
    (folder / "manifest.json").write_text(json.dumps(value | {"seal": _seal(value)}))
    with pytest.raises(UserError, match="damaged data"):
        open_corpus(folder)


def test_a_point_is_read_or_refused(trained, tmp_path, canary):
    only = honest_runs(trained)[0]
    assert read_point(only).id == only.name
    for content in yaml_attacks(canary).values():
        (tmp_path / "point.yaml").write_text(content)
        with pytest.raises(ValueError):
            read_point(tmp_path)
    (tmp_path / "point.yaml").write_text(laughs(20))
    assert load_yaml(tmp_path / "point.yaml")["a0"] == ["x"]


@pytest.mark.parametrize("bomb", ["laughs", "merges", "deep", "itself"])
def test_a_config_of_others_is_no_bomb(tmp_path, capsys, bomb):
    content = {"laughs": laughs(40), "merges": merges(12), "deep": "a: " + "[" * DEEP, "itself": "a: &a [*a]\n"}[bomb]
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "theirs.yaml").write_text(f"# @package _global_\n{content}")
    assert main(["sweep", "sweep=theirs", "--config-dir", str(tmp_path), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) <= 2 and "theirs.yaml" in said


@pytest.mark.parametrize("content", [*json_attacks().values(), '{"laws": [{"name": "lr", "parameters": {}, "a": ' + "[" * 900
                                     + "]" * 900 + "}]}"])  # fmt: skip
def test_hostile_laws_are_refused_in_words(tmp_path, capsys, content):
    (tmp_path / "laws.json").write_text(content)
    assert main(["recommend", f"laws={tmp_path}", "params=1e9", "tokens=2e10"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) <= 2


@pytest.mark.parametrize("condition", [
    "__import__('os').system('touch CANARY')", "().__class__.__base__.__subclasses__()", "@x", "width.real > 1",
    "[x for x in (1,)]", "(lambda: 1)()", "f'{width}' == ''", "width[0] > 1", "9**9**9**9 > width", "(y := 1)", "width > " +
    "(" * 5000, "`width\x00` > 1", "await width", "'a' * 10**12 == 'b'",
])  # fmt: skip
def test_filters_run_no_code(tmp_path, capsys, canary, condition):
    """where= of an analysis and sweep.filter are the same checked subset of conditions."""
    condition = condition.replace("CANARY", str(canary))
    (tmp_path / "t.csv").write_text("params,width,lr,loss\n" + "".join(f"{n},{n},{n},3.0\n" for n in range(1, 9)))
    assert main(["fit", "analysis=lr", f"table={tmp_path / 't.csv'}", f"where={condition}", f"out={tmp_path}"]) == 2
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "theirs.yaml").write_text(
        "# @package _global_\n" + json.dumps({"sweep": {"filter": [condition.replace("${", "")], "name": "x"}})
    )
    sweep = ["sweep", "sweep=theirs", "--config-dir", str(tmp_path), "--dry-run", f"cache={tmp_path / 'cache'}"]
    assert main([*sweep, *TINY]) == 2
    assert all(line.startswith("hyperlaw: ") for line in capsys.readouterr().err.strip().splitlines())
