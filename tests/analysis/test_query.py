"""`where=` agrees with pandas where both understand it, and refuses everything else in words."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import UserError
from analysis.query import mask, select

FRAME = pd.DataFrame(
    {
        "run_id": ["12", "0013", "1e5", "abc"],
        "params": [1e6, 2e6, np.nan, 4e6],
        "seed": [0, 1, 2, 3],
        "optimizer": ["adamw", "muon", None, "adamw"],
        "flag": [True, False, True, False],
        "my column": [1, 2, 3, 4],
    }
)

SAME_AS_PANDAS = [
    "params < 1.6e6 and optimizer == 'adamw'",
    'params < 3e6 & optimizer == "muon" | seed == 3',
    "1e6 < params <= 4e6",
    "seed in [0, 3]",
    "seed not in (0, 3)",
    "optimizer in ['muon']",
    "seed == [1, 2]",
    "not flag",
    "~(seed == 1) and params > 0",
    "`my column` * 2 + 1 > params / 1e6",
    "-seed <= -2",
    "optimizer != 'adamw'",
    "seed ** 2 > 3 or flag",
    "seed % 2 == 1",
    "-seed // 2 < -1 or params % 2e6 == 0",
    "index > 1 and seed < 3",
    "index in [0, 3]",
]


@pytest.mark.parametrize("where", SAME_AS_PANDAS)
def test_agrees_with_pandas(where):
    expected = FRAME.index.isin(FRAME.query(where, engine="python").index)
    assert mask(FRAME, where).tolist() == expected.tolist()


def test_run_ids_compare_as_text():
    assert mask(FRAME, "run_id == 12").tolist() == [True, False, False, False]
    assert mask(FRAME, "run_id in [1e5, '0013']").tolist() == [False, True, True, False]
    assert mask(FRAME, "run_id != '12'").tolist() == [False, True, True, True]
    numbers = FRAME.assign(run_id=[12, 13, 14, 15])
    assert mask(numbers, "run_id == '13'").tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "where",
    [
        "param > 1",
        "params",
        "seed + 1",
        "'text'",
        "[1]",
        "__import__('os').system('true')",
        "params.max() > 1",
        "params[0] > 1",
    ]
    + [
        "@x > 1",
        "seed % 'a' > 1",
        "index.max() > 1",
        "1 % 0 > 1",
        "9**9**9**9 > 1",
        "optimizer < 3",
        "seed = 1",
        "'open",
        "(" * 3000,
        "seed if flag else seed",
        "lambda: 1",
    ]
    + [
        "[s for s in seed]",
        "f'{seed}'",
        "(x := 1)",
        "seed is None",
        "seed in 3",
        "seed in seed",
        "optimizer * 2 > 1",
        "*seed",
    ]
    + [
        "seed > 1; seed < 2",
        "params > 1 and",
        "not",
        "seed ==",
        "\x00",
        "seed in [params]",
        "await seed",
        "-optimizer > 1",
    ],
)
def test_refused_in_a_line(where):
    with pytest.raises(UserError) as error:
        mask(FRAME, where)
    assert len(str(error.value).splitlines()) <= 2 and len(str(error.value)) < 400


def test_select():
    assert select(FRAME, None) is FRAME and select(FRAME, "  ") is FRAME
    assert select(FRAME, "flag").index.tolist() == [0, 2]
    with pytest.raises(UserError, match="keeps none of 4 rows"):
        select(FRAME, "seed > 9")
    with pytest.raises(UserError, match="did you mean params"):
        select(FRAME, "parms > 9")


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="seedparmflg0123 <>=!&|~()[]+-*/'\"`,.@;:\n", max_size=40))
def test_any_text_is_answered(where):
    try:
        assert mask(FRAME, where).shape == (4,)
    except UserError:
        pass
