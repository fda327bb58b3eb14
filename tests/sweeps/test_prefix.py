"""The trie of common prefixes against a count of distinct prefixes, one tuple per step."""

from collections import defaultdict
from dataclasses import asdict

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.hyper import per_step
from harness.point import Point
from harness.resolve import DataFacts
from sweeps.expand import expand
from sweeps.prefix import flops_between, prefix_id, share, steps_between
from tests.points import request_of

FACTS = DataFacts("content", 256, 10**12)
SHAPE = ["model.width=16", "model.depth=1", "model.context=16", "validation.tokens=512"]
STEP = 64  # tokens of a step of 4 sequences


def points_of(*overrides) -> list[Point]:
    return expand(request_of(*SHAPE, "batch_size=4", *overrides), FACTS)


def prefixes(point: Point) -> list[tuple]:
    """What decides the state after 0, 1, ... steps, written out: constants, then each step's numbers and batch."""
    d = point.to_dict()
    optimizer = {k: v for k, v in d["optimizer"].items() if k not in ("lr", "weight_decay", "weight_decay_mode")}
    constants = (str(asdict(point.shape)), str(optimizer), str(asdict(point.parameterization)), point.data.fingerprint,
                 point.data.seed, point.seed, point.precision)  # fmt: skip
    rows = [(constants, *row, int(size)) for row, size in zip(per_step(point).tolist(), point.batches(), strict=True)]
    return [tuple(rows[:n]) for n in range(len(rows) + 1)] if rows else []


def brute_force(points: list[Point]) -> dict:
    """Distinct prefixes of at least one step -> the points that have them."""
    found = defaultdict(list)
    for point in points:
        for prefix in prefixes(point)[1:]:
            found[prefix].append(point)
    return found


schedules = st.one_of(
    st.just(["schedule=linear"]),
    st.just(["schedule=cosine"]),
    st.just(["schedule=constant"]),
    st.builds(lambda shape, length: ["schedule=wsd", f"schedule.cooldown_shape={shape}", f"schedule.cooldown={length}"],
              st.sampled_from(["linear", "1-sqrt"]), st.sampled_from([0.2, 0.5])),
)  # fmt: skip
warmups = st.sampled_from(["schedule.warmup=0.2", "schedule.warmup=0.1", f"schedule.warmup_tokens={3 * STEP}",
                           "schedule.warmup=0"])  # fmt: skip
decays = st.sampled_from(["optimizer.weight_decay=0.1", "optimizer.weight_decay=0", "optimizer.weight_decay=0.1,0.2",
                          "tau=0.2", "tau=0.1,0.4"])  # fmt: skip
groups = st.builds(
    lambda schedule, warmup, decay, mode, steps, rates, seeds: points_of(
        *schedule, warmup, decay, f"optimizer.weight_decay_mode={mode}", f"seed={','.join(map(str, seeds))}",
        f"tokens={','.join(str(STEP * n) for n in steps)}", f"optimizer.lr={','.join(map(str, rates))}"),
    schedules, warmups, decays, st.sampled_from(["coupled", "independent"]),
    st.lists(st.integers(5, 40), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from([0.01, 0.02]), min_size=1, max_size=2, unique=True),
    st.lists(st.integers(0, 1), min_size=1, max_size=2, unique=True),
)  # fmt: skip
sweeps = st.lists(groups, min_size=1, max_size=4).map(lambda lists: list({p.id: p for ps in lists for p in ps}.values()))


@settings(max_examples=25, deadline=None)
@given(sweeps)
def test_saves_what_a_count_of_distinct_prefixes_says(points):
    forest, distinct = share(points), brute_force(points)
    assert forest.cost(steps_between) == len(distinct)
    assert forest.cost(flops_between) == sum(p[0].flops_at(len(k)) - p[0].flops_at(len(k) - 1) for k, p in distinct.items())
    by_id = {p.id: p for p in points}
    behind = defaultdict(list)
    for point in points:
        name = top = forest.start.get(point.id)
        assert (name is None) == (point.id not in forest.root)
        while name is not None:
            behind[name].append(by_id[point.id])
            top, name = name, forest.trunks[name].parent
        assert forest.root.get(point.id) == top
    assert set(behind) == set(forest.trunks)
    for trunk in forest.trunks.values():
        whole = prefixes(trunk.point)[trunk.steps]
        assert {p.id for p in distinct[whole]} == {p.id for p in behind[trunk.id]} and len(behind[trunk.id]) > 1
        assert {prefix_id(p, trunk.steps) for p in behind[trunk.id]} == {trunk.id}
        asked = {step for p in behind[trunk.id] for step in p.validation_steps if step <= trunk.steps}
        assert trunk.validate_at == tuple(sorted(asked))
        if trunk.parent:
            parent = forest.trunks[trunk.parent]
            assert parent.steps < trunk.steps and whole[: parent.steps] == prefixes(parent.point)[parent.steps]
