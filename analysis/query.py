"""`where=`: a checked subset of the pandas query grammar, walked over the frame and never evaluated as Python.

Allowed: column names (`with spaces` in backticks), numbers, texts, lists, True, False, None; < <= > >= == !=, chained;
in, not in; and, or, not (also & | ~ with the precedence of and, or, not); + - * / // % ** on numbers; parentheses.
`index` is the row's label where no column has that name. Run ids compare as text, written with or without quotes. A
comparison with an empty cell is false (`!=` is true), as in pandas.
"""

import ast
import io
import operator
import re
import tokenize
from collections.abc import Callable

import numpy as np
import pandas as pd

from analysis.columns import IDENTIFIERS
from analysis.errors import UserError, nearest

COMPARE: dict[type, Callable] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
ARITHMETIC: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
WORDS = {"&": " and ", "|": " or ", "~": " not "}
QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`([^`]*)`""")


def select(frame: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """The rows of `frame` where the condition holds; all where it is None or blank. Raises UserError if none is
    left."""
    if where is None or not str(where).strip():
        return frame
    chosen = frame[mask(frame, str(where))]
    if chosen.empty and len(frame):
        raise UserError(f"where={_short(where)} keeps none of {len(frame)} rows.")
    return chosen


def mask(frame: pd.DataFrame, where: str) -> np.ndarray:
    """Boolean array, one entry per row. Raises UserError for anything outside the grammar, naming what."""
    walker = _Walker(frame, where)
    try:
        result = walker.value(walker.tree)
    except UserError:
        raise
    except RecursionError:
        raise UserError("where= is nested too deeply.") from None
    except (TypeError, ValueError, OverflowError, ArithmeticError) as error:
        raise UserError(f"where={_short(where)}: {error}") from None
    if isinstance(result, bool | np.bool_):
        return np.full(len(frame), bool(result))
    return _truth(result, where)


def _short(where: str) -> str:
    where = " ".join(where.split())  # a message keeps its line
    return where if len(where) <= 100 else f"{where[:97]}..."


def _truth(values: object, where: str) -> np.ndarray:
    if isinstance(values, pd.Series) and (
        pd.api.types.is_bool_dtype(values)
        or values.dropna().map(lambda cell: isinstance(cell, bool)).all()
        and values.notna().any()
    ):
        return values.fillna(False).to_numpy(bool)
    raise UserError(f"where={_short(where)} must be a condition, such as 'params < 1e9 and optimizer == \"adamw\"'.")


class _Walker:
    def __init__(self, frame: pd.DataFrame, where: str):
        self.frame, self.where, self.names = frame, _short(where), {}
        if len(where) > 10_000:
            raise UserError("where= is longer than 10,000 characters.")
        self.text = self._plain(where)
        try:
            self.tree = ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = getattr(error, "msg", None) or "nested too deeply"
            raise UserError(
                f"where={self.where} cannot be read ({reason}); equality is ==, texts stand in quotes."
            ) from None

    def _plain(self, where: str) -> str:
        """Backticked names to identifiers; & | ~ to and, or, not, which is the precedence that pandas gives them."""

        def hide(match: re.Match) -> str:
            if match.group(1) is None:
                return match.group(0)
            alias = f"_column_{len(self.names)}_"
            self.names[alias] = match.group(1)
            return alias

        text = QUOTED.sub(hide, where).replace("\n", " ").strip()
        try:
            tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        except (tokenize.TokenError, SyntaxError, IndentationError):
            return text  # the parser will say what is wrong
        for token in reversed(tokens):
            if token.type == tokenize.OP and token.string in WORDS and token.start[0] == 1:
                text = text[: token.start[1]] + WORDS[token.string] + text[token.end[1] :]
        return text.strip()

    def value(self, node: ast.expr) -> object:
        match node:
            case ast.BoolOp():
                parts = [self.condition(part) for part in node.values]
                return pd.Series(
                    np.logical_and.reduce(parts) if isinstance(node.op, ast.And) else np.logical_or.reduce(parts)
                )
            case ast.UnaryOp(op=ast.Not()):
                return pd.Series(~self.condition(node.operand))
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                number = self.number(node.operand)
                return -number if isinstance(node.op, ast.USub) else number
            case ast.BinOp() if type(node.op) in ARITHMETIC:
                with np.errstate(all="ignore"):
                    return ARITHMETIC[type(node.op)](self.number(node.left), self.number(node.right))
            case ast.Compare():
                operands = [node.left, *node.comparators]
                pairs = zip(operands, node.ops, operands[1:], strict=False)
                return pd.Series(np.logical_and.reduce([self.compare(*pair) for pair in pairs]))
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.List() | ast.Tuple() | ast.Set():
                return [self.literal(item) for item in node.elts]
            case ast.Name():
                return self.column(node.id)
        raise UserError(
            f"where={self.where}: {type(node).__name__.lower()} is not allowed; use columns, values, comparisons."
        )

    def column(self, name: str) -> pd.Series:
        name = self.names.get(name, name)
        if name == "index" and name not in self.frame:
            return pd.Series(self.frame.index)
        if name not in self.frame:
            raise UserError(f"where={self.where}: the table has no column {name}{nearest(name, self.frame.columns)}")
        return self.frame[name].reset_index(drop=True)

    def condition(self, node: ast.expr) -> np.ndarray:
        value = self.value(node)
        return np.full(len(self.frame), value) if isinstance(value, bool) else _truth(value, self.where)

    def number(self, node: ast.expr) -> object:
        """A column of numbers or a float; floats overflow where Python's whole numbers would take for ever."""
        value = self.value(node)
        if isinstance(value, pd.Series) and pd.api.types.is_numeric_dtype(value):
            return value.astype(float)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise UserError(f"where={self.where}: arithmetic needs numbers, {ast.unparse(node)} is none.")

    def literal(self, node: ast.expr) -> object:
        value = self.value(node)
        if isinstance(value, pd.Series | list):
            raise UserError(f"where={self.where}: a list holds numbers and texts only.")
        return value

    def compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> np.ndarray:
        text = any(
            isinstance(node, ast.Name) and self.names.get(node.id, node.id) in IDENTIFIERS for node in (left, right)
        )
        read = self.as_text if text else self.value
        a, b = read(left), read(right)
        if isinstance(op, ast.In | ast.NotIn) or (isinstance(b, list) and isinstance(op, ast.Eq | ast.NotEq)):
            if not isinstance(b, list) or not isinstance(a, pd.Series):
                raise UserError(f"where={self.where}: `in` takes a column and a list, such as seed in [1, 2].")
            inside = a.isin(b).to_numpy(bool)
            return inside if isinstance(op, ast.In | ast.Eq) else ~inside
        if isinstance(a, list) or isinstance(b, list) or type(op) not in COMPARE:
            raise UserError(f"where={self.where}: a list goes with `in`, and a missing value with == nan columns only.")
        result = COMPARE[type(op)](a, b)
        if not isinstance(result, pd.Series):
            return np.full(len(self.frame), bool(result))
        return result.fillna(isinstance(op, ast.NotEq)).to_numpy(bool)

    def as_text(self, node: ast.expr) -> object:
        """Identifiers and what they are compared with, as text; a bare number as it is written."""
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return [self.as_text(item) for item in node.elts]
        if isinstance(node, ast.Constant) and not isinstance(node.value, str):
            return ast.get_source_segment(self.text, node)
        value = self.value(node)
        if isinstance(value, pd.Series):
            return value.astype(object).map(str, na_action="ignore")
        return str(value)
