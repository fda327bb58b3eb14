"""The trie of common prefixes against a count of distinct prefixes, one tuple per step."""

from collections import Counter, defaultdict
from dataclasses import asdict
from itertools import islice, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import Config, OptimizerConfig
from harness.hyper import per_step
from harness.point import Point
from harness.resolve import DataFacts, resolve
from sweeps import paths
from sweeps.prefix import flops_between, prefix_id, share, steps_between


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """So that short runs have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "BLOCK", 4)
        patch.setattr(paths, "CHUNK", 8)
        clear()
        yield
    clear()


def clear():
    for cached in (paths._path_of, paths._digests, paths.common, paths._rows_of):
        cached.cache_clear()


FACTS = DataFacts("content", 256, 10**12)
STEP = 64  # tokens of a step of 4 sequences


def point_of(steps=40, **changes) -> Point:
    """One point: `point_of(30, tau=0.2, schedule={"name": "linear", "warmup": 0.1})`."""
    config = Config(tpp=None, tokens=steps * STEP, batch_size=4, optimizer=OptimizerConfig(weight_decay=0.1))
    config.model.width, config.model.depth, config.model.context, config.validation.tokens = 16, 1, 16, 512
    for key, value in changes.items():
        part = getattr(config, key)
        if isinstance(value, dict):
            for name, x in value.items():
                setattr(part, name, x)
        else:
            setattr(config, key, value)
    return resolve(config, FACTS)


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
        for rows in prefixes(point)[1:]:
            found[rows].append(point)
    return found


# What has a common beginning at all is drawn more often: warm-up in steps or none, wsd and constant, fixed decay.
lengths = st.sampled_from([{"warmup": None, "warmup_tokens": 3 * STEP}, {"warmup": 0}, {"warmup": 0.2}, {"warmup": 0.1}])
schedules = st.one_of(
    st.builds(lambda shape, length: {"name": "wsd", "cooldown_shape": shape, "cooldown": length},
              st.sampled_from(["linear", "1-sqrt"]), st.sampled_from([0.2, 0.5])),
    st.just({"name": "constant"}),
    st.sampled_from([{"name": "wsd", "cooldown": 0.3}, {"name": "linear"}, {"name": "cosine"}]),
)  # fmt: skip
SLOW, SLOWER = [[4 * 16, 1]], [[4 * 16, 1], [12 * 16, 2]]  # they part behind their first stage
ramps = st.sampled_from([[None], [SLOW, SLOWER], [None, SLOW], [[[10 * 16, 2]]], [SLOWER, SLOW, None]])
decays = st.sampled_from([{"weight_decay": 0.1}, {"weight_decay": 0.2}, {"weight_decay": 0}, {"tau": 0.2}])


def _points(*axes) -> list[Point]:
    """The first 32 of a grid, horizons and schedules before all else."""
    found = {}
    for seed, lr, mode, decay, warmup, ramp, schedule, steps in islice(product(*axes), 32):
        optimizer = {"lr": lr, "weight_decay_mode": mode, "weight_decay": decay.get("weight_decay")}
        schedule = {**schedule, **warmup, "batch_ramp": ramp}
        point = point_of(steps, schedule=schedule, optimizer=optimizer, tau=decay.get("tau"), seed=seed)
        found[point.id] = point
    return list(found.values())


def some(values, least: int, most: int):
    return st.lists(values, min_size=least, max_size=most, unique_by=repr)


sweeps = st.builds(_points, some(st.integers(0, 1), 1, 2), some(st.sampled_from([0.01, 0.02]), 1, 2),
                   some(st.sampled_from(["coupled", "independent"]), 1, 1), some(decays, 1, 2), some(lengths, 1, 2),
                   ramps, some(schedules, 1, 2), some(st.integers(12, 40), 2, 4))  # fmt: skip


def features(points: list[Point], forest) -> dict[str, bool]:
    """What makes a draw worth checking."""

    def depth(name):
        return 1 + depth(forest.trunks[name].parent) if name else 0

    begun = [p for p in points if p.id in forest.start]
    trunks = forest.trunks.values()
    return {
        "trunks": bool(trunks),
        "levels": any(depth(name) > 1 for name in forest.trunks),
        "ramps": any(t.point.schedule.ramp and t.steps > t.point.schedule.ramp[0][0] for t in trunks),
        "parted by ramps": len({(forest.root[p.id], p.schedule.ramp) for p in begun}) > len({*forest.root.values()}),
        "lambda axes": len({p.optimizer.weight_decay for p in begun}) > 1,
    }


def test_saves_what_a_count_of_distinct_prefixes_says():
    seen = Counter()

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(sweeps)
    def check(points):
        forest = share(points)
        check_forest(points, forest, brute_force(points))
        seen.update(["draws", *(name for name, there in features(points, forest).items() if there)])

    check()
    assert all(seen[name] >= seen["draws"] * part for name, part in COVERED.items()), seen


# Share of the draws that has each feature, at least.
COVERED = {"trunks": 0.6, "levels": 0.3, "ramps": 0.2, "parted by ramps": 0.1, "lambda axes": 0.15}


def check_forest(points, forest, distinct):
    assert forest.cost(steps_between) == len(distinct)
    assert forest.cost(flops_between) == sum(p[0].flops_at(len(k)) - p[0].flops_at(len(k) - 1) for k, p in distinct.items())
    by_id = {p.id: p for p in points}
    behind = defaultdict(list)
    for point in points:
        name = forest.start.get(point.id)
        assert (name is None) == (point.id not in forest.root)
        while name is not None:
            behind[name].append(by_id[point.id])
            name = forest.trunks[name].parent
            assert forest.root[point.id] == prefix_id(point, 1)
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


def horizons(units=range(1, 7), **changes) -> list[Point]:
    """wsd, equally spaced horizons x 5 learning rates, 20 % cooldowns, warm-up in tokens."""
    schedule = {"name": "wsd", "warmup": None, "warmup_tokens": 10 * STEP, "cooldown": 0.2, "cooldown_shape": "1-sqrt"}
    decay = changes or {"weight_decay": 0.1}
    return [point_of(100 * n, schedule=schedule, tau=decay.get("tau"),
                     optimizer={"lr": 0.001 * 2**k, "weight_decay": decay.get("weight_decay")})
            for n in units for k in range(5)]  # fmt: skip


def test_six_horizons_cost_less_than_half_and_a_tau_axis_shares_nothing():
    points = horizons()
    forest = share(points)
    assert 0.42 < forest.cost(flops_between) / sum(p.flops for p in points) < 0.45
    assert len(forest.trunks) == 25 and len(set(forest.root.values())) == 5
    assert share(horizons(tau=0.2)).flops_saved == 0


def test_a_trunk_that_saves_too_little_is_left_out():
    points = horizons()
    whole, fewer = share(points), share(points, least=150)
    assert 0 < len(fewer.trunks) < len(whole.trunks) and 0 < fewer.steps_saved < whole.steps_saved
    assert set(fewer.trunks) < set(whole.trunks) and not share(points, least=1e6).trunks
    for trunk in fewer.trunks.values():
        assert trunk.parent is None or fewer.trunks[trunk.parent].steps < trunk.steps
        users = [t.parent for t in fewer.trunks.values()].count(trunk.id) + [*fewer.start.values()].count(trunk.id)
        first = fewer.trunks[trunk.parent].steps if trunk.parent else 0
        assert (users - 1) * (trunk.steps - first) >= 150


def test_a_finished_trunk_serves_one_point_too_where_it_validated_what_the_point_asks():
    (old, later), every = horizons([5, 6])[::5], range(1000)
    name = prefix_id(old, 300)
    assert name == prefix_id(later, 300) != prefix_id(old, 299)
    forest = share([later], known={name: (300, every)})
    assert forest.start == {later.id: name} and forest.finished == {name} and forest.cost(steps_between) == 300
    assert not share([later], known={name: (300, [150])}).trunks  # it asks at 300 too
    assert not share([later], known={prefix_id(old, 450): (450, every)}).trunks  # cooling already
    both = share([old, later], known={name: (300, every)})
    assert both.cost(steps_between) == share([old, later]).cost(steps_between) - 300
    assert [t.parent for t in both.trunks.values() if t.id != name] == [name]
