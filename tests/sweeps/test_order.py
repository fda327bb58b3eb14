"""What a free worker takes: largest first, its own shape first, no shape compiled twice at once."""

from sweeps.jobs import Job
from sweeps.order import choose


def job(name, key, seconds, compile=True):
    return Job(name, (), key, compile, seconds)


JOBS = [job("a1", "a", 5), job("a2", "a", 6), job("b1", "b", 20), job("c1", "c", 1), job("c2", "c", 30)]


def test_the_shape_with_most_work_first_its_largest_point_first():
    assert choose(JOBS, None, set(), set()).id == "c2"


def test_a_worker_stays_with_its_shape():
    assert choose(JOBS, "a", {"b"}, set()).id == "a2"


def test_a_shape_that_another_compiles_is_left_to_it_while_there_are_others():
    assert choose(JOBS, None, {"c"}, {"c"}).id == "b1"
    assert choose(JOBS, None, {"b", "c"}, {"b", "c"}).id == "a2"
    assert choose(JOBS[:2], None, {"a"}, {"a"}).id == "a2"
    assert choose([], None, set(), set()) is None


def test_eager_points_have_no_shape_to_stay_with():
    jobs = [job("a", "a", 1, False), job("b", "b", 9, False)]
    assert choose(jobs, "a", {"b"}, set()).id == "b"
