"""What a free worker takes: longest first, its own shape where loading another is dear, none compiled twice at once."""

from sweeps.jobs import Job
from sweeps.order import choose


def job(name, key, seconds, compile=True):
    return Job(name, (), key, compile, seconds)


JOBS = [job("a1", "a", 5), job("a2", "a", 6), job("b1", "b", 20), job("c1", "c", 1), job("c2", "c", 30)]


def dear(jobs, mine, others, compiling):
    return choose(jobs, mine, others, compiling, load=5.0)


def test_the_longest_first_with_its_compilation():
    assert choose(JOBS, None, set(), set()).id == choose(JOBS, "a", set(), set()).id == "c2"
    assert choose(JOBS, "a", set(), set(), lambda job: 30 * (job.key == "a")).id == "a2"
    assert choose([job("t", "t", 1), *JOBS], None, set(), {"c", "b"}, lambda job: 6 * (job.key == "t")).id == "t"


def test_where_loading_is_dear_the_shape_with_most_work_first_its_largest_point_first():
    assert dear([*JOBS, job("a3", "a", 25)], None, set(), set()).id == "a3"


def test_where_loading_is_dear_a_worker_stays_with_its_shape():
    assert dear(JOBS, "a", {"b"}, set()).id == "a2"
    assert dear(JOBS, None, {"c"}, set()).id == "b1"


def test_a_shape_that_another_compiles_is_left_to_it_while_there_are_others():
    for take in (choose, dear):
        assert take(JOBS, None, {"c"}, {"c"}).id == "b1"
        assert take(JOBS, None, {"b", "c"}, {"b", "c"}).id == "a2"
        assert take(JOBS[:2], None, {"a"}, {"a"}).id == "a2"
        assert take([], None, set(), set()) is None


def test_eager_points_have_no_shape_to_stay_with():
    jobs = [job("a", "a", 1, False), job("b", "b", 9, False)]
    assert choose(jobs, "a", {"b"}, set()).id == dear(jobs, "a", {"b"}, set()).id == "b"
