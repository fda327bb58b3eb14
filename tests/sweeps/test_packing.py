"""Trees of trunks and branches packed into allocations: any trees, however large, deep or many."""

from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.jobs import Job
from sweeps.packing import WAVES, pack


def trunk(name, start=None):
    return Job(name, (None,), "a", False, 1.0, (start,) if start else (), start=start, trunk=True)


def point(name, start=None, seconds=1.0):
    return Job(name, (None,), "a", False, seconds, (start,) if start else (), start=start)


@st.composite
def forests(draw):
    """Jobs in any order. A trunk begins at one of the last four, so that there are chains, or at none."""
    jobs, trunks = [], [None]
    for i in range(draw(st.integers(1, 40))):
        start = draw(st.sampled_from([None, *trunks[-4:]]))
        if draw(st.booleans()):
            jobs.append(trunk(f"t{i}", start))
            trunks.append(f"t{i}")
        else:
            jobs.append(point(f"p{i}", draw(st.sampled_from(trunks)), draw(st.sampled_from([1.0, 5.0]))))
    return draw(st.permutations(jobs))


def counted(share):
    trunks = sum(job.trunk for job in share.jobs)
    return max(trunks, len(share.jobs) - trunks)


def depth(job, by_id):
    n = 1
    while job.start:
        job, n = by_id[job.start], n + 1
    return n


@settings(max_examples=150, deadline=None)
@given(forests(), st.integers(1, 9))
def test_any_forest(jobs, size):
    shares = pack(jobs, size)
    assert Counter(job.id for share in shares for job in share.jobs) == Counter(job.id for job in jobs)
    home = {job.id: i for i, share in enumerate(shares) for job in share.jobs}
    for i, share in enumerate(shares):
        assert counted(share) <= size
        outside = {need for job in share.jobs for need in job.needs if home[need] != i}
        assert share.needs == outside and all(home[need] < i for need in outside)
        levels = {shares[home[need]].level for need in outside}
        assert share.level > max(levels, default=-1) and (share.level == 0) == (not outside)
    waves = {(share.level, share.wave) for share in shares}
    by_id = {job.id: job for job in jobs}
    assert len(waves) <= WAVES * max(depth(job, by_id) for job in jobs)
    assert len([level for level, _ in waves if level == 0]) == 1
    trees = defaultdict(list)
    for job in jobs:
        top = job
        while top.start:
            top = by_id[top.start]
        trees[top.id].append(job)
    for tree in trees.values():  # what fits is not parted
        trunks = sum(job.trunk for job in tree)
        if max(trunks, len(tree) - trunks) <= size:
            assert len({home[job.id] for job in tree}) == 1


def test_submissions_follow_from_the_depth_of_trees_not_from_their_number():
    jobs = [trunk(f"t{i}") for i in range(300)] + [point(f"p{i}.{k}", f"t{i}") for i in range(300) for k in range(9)]
    shares = pack(jobs, 8)
    assert len({(share.level, share.wave) for share in shares}) == 1 + WAVES
    last = [share for share in shares if share.level]  # one point of each tree was too many
    assert sum(len(share.jobs) for share in last) == 300 and len(last) <= -(-300 // 8) + WAVES


def test_a_very_deep_tree():
    jobs = [job for i in range(3000) for job in (trunk(f"t{i}", f"t{i - 1}" if i else None), point(f"p{i}", f"t{i}"))]
    shares = pack(jobs, 10)
    assert all(counted(share) <= 10 for share in shares) and len(shares) <= 330
    assert len({(share.level, share.wave) for share in shares}) <= 330
