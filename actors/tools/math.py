"""``math``: the value of an arithmetic expression, exactly where it is whole, and never at the cost of much time."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

import anyio.to_thread
from simpleeval import EvalWithCompoundTypes

from ...schemas import Content, InvalidRequest, ToolRequest
from .arithmetic import CONSTANTS, FUNCTIONS, OPERATORS, bounded

MAX_LENGTH = 1000
"""Characters of an expression; that bounds what it is made of too."""
MAX_DEPTH = 150
"""Also the most summands that stand one after the other."""
MAX_RESULT = 16_000
"""Characters of an answer: a list may have several long numbers."""

_ALLOWED = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.Call),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.And, ast.Or, *OPERATORS),
)
"""What an expression is made of: no text, no attributes, no indices, no loops."""
_EVALUATOR = EvalWithCompoundTypes(
    operators=dict(OPERATORS), functions=dict(FUNCTIONS), names=dict(CONSTANTS)
)
"""It keeps nothing of what it evaluates, and may do so in several threads."""


class Math:
    """A `Tool` that evaluates arithmetic expressions.

    How long that takes is bounded by how an expression may look and by how large a number may get; it is done in a thread,
    so that nothing else waits for it either.
    """

    name = "math"
    description = (
        "Evaluate an arithmetic expression in Python's syntax; whole numbers are exact. There are + - * / // % **, comparisons, "
        "`a if c else b`, lists, "
        f"the constants {', '.join(CONSTANTS)}, and the functions {', '.join(sorted(FUNCTIONS))}. Angles are in radians. "
        "Example: comb(52, 5) / 2**10"
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "expression": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_LENGTH,
                "description": "The expression.",
            }
        },
        "required": ["expression"],
        "additionalProperties": False,
    }
    idempotent = True
    seconds = 10.0
    max_output = MAX_RESULT

    async def run(self, request: ToolRequest) -> Content:
        """Evaluate an expression; see `Tool.run`.

        Raises:
            InvalidRequest: it is none, has no value, or would take too much.
        """
        return await anyio.to_thread.run_sync(evaluate, request.arguments["expression"])


def evaluate(expression: str) -> str:
    """Return the value of an expression as text: whole numbers with all digits, others as Python writes them.

    Raises:
        InvalidRequest: it is no expression, has no value, or is too long, too deep or too large.
    """
    tree = _parsed(expression)
    _check(tree)
    try:
        text = _text(_EVALUATOR.eval(expression, previously_parsed=tree.body))
    except InvalidRequest:
        raise
    except ZeroDivisionError:
        raise InvalidRequest("it divides by zero") from None
    except OverflowError:
        raise InvalidRequest("a number gets larger than a float can be") from None
    except Exception as error:
        # What Python and the evaluator say of an expression: a wrong domain, a wrong number of arguments.
        raise InvalidRequest(f"it has no value: {str(error)[:200]}") from None
    if len(text) > MAX_RESULT:
        raise InvalidRequest(f"the result is longer than {MAX_RESULT} characters")
    return text


def _parsed(expression: str) -> ast.Expression:
    if len(expression) > MAX_LENGTH:
        raise InvalidRequest(f"an expression has at most {MAX_LENGTH} characters")
    try:
        return ast.parse(expression.strip(), mode="eval")
    except SyntaxError as error:
        raise InvalidRequest(f"it is no expression: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError):
        raise InvalidRequest("it is no expression, or nested too deeply") from None


def _check(tree: ast.Expression) -> None:
    """Refuse what is not allowed before any of it is evaluated."""
    called: set[ast.AST] = set()
    for node, depth in _walk(tree):
        if depth > MAX_DEPTH:
            raise InvalidRequest(
                "the expression is nested too deeply; sum([...]) and prod([...]) take many numbers"
            )
        if not isinstance(node, _ALLOWED):
            raise InvalidRequest(
                f"{_construct(node)} is not possible here: only arithmetic, lists of numbers and the named functions are"
            )
        if isinstance(node, ast.Constant):
            if not isinstance(node.value, int | float):
                raise InvalidRequest(
                    "only whole and real numbers are possible, no text and no others"
                )
            bounded(node.value)
        elif isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
                raise InvalidRequest(
                    f"there is no such function; there are {', '.join(sorted(FUNCTIONS))}"
                )
            if node.keywords:
                raise InvalidRequest("functions take no named arguments")
            called.add(node.func)
        elif isinstance(node, ast.Name) and node not in called and node.id not in CONSTANTS:
            if node.id in FUNCTIONS:
                raise InvalidRequest(f"{node.id} is a function: call it")
            raise InvalidRequest(
                f"there is no {node.id[:40]!r}; the constants are {', '.join(CONSTANTS)}"
            )


def _walk(tree: ast.Expression) -> Iterator[tuple[ast.AST, int]]:
    """Yield all nodes with their depth, without recursion."""
    waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        yield node, depth
        waiting += [(child, depth + 1) for child in ast.iter_child_nodes(node)]


def _construct(node: ast.AST) -> str:
    return type(node).__name__


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return repr(bounded(value))
