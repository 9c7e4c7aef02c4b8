"""Arithmetic that ends soon whatever is asked: numbers do not grow beyond a bound, and nothing is begun that would take long."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

from ...schemas import InvalidRequest

MAX_BITS = 13_000
"""Of a whole number, some 3,900 digits: Python writes out no more than 4,300."""
MAX_MODULAR_WORK = 1 << 28
"""Bits of the exponent times the square of those of the modulus."""
MAX_PLACES = 400
"""To which numbers are rounded; no float has more."""

Number = int | float


def _too_large() -> InvalidRequest:
    digits = int(MAX_BITS * math.log10(2))
    return InvalidRequest(f"a number gets longer than {digits} digits, which is not calculated")


def bounded(value: Any) -> Any:
    """Return a result, if it is a number that is not too large, or what is made of such.

    Raises:
        InvalidRequest: it is too large, or no real number.
    """
    if isinstance(value, complex):
        raise InvalidRequest("the result is no real number")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise _too_large()
    return value


def _number(value: Any) -> Number:
    if not isinstance(value, int | float):
        raise InvalidRequest("lists can only be given to functions that take several numbers")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise InvalidRequest(f"{value!r:.40} is no whole number")
    return value


def _on_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of numbers whose result is bounded."""

    def checked(*values: Any) -> Any:
        return bounded(function(*map(_number, values)))

    return checked


def power(base: Any, exponent: Any, modulus: Any = None) -> Any:
    """Return a power; with a modulus, its remainder."""
    if modulus is not None:
        base, exponent, modulus = map(_whole, (base, exponent, modulus))
        size = max(modulus.bit_length(), 1)
        if exponent.bit_length() * size**2 > MAX_MODULAR_WORK:
            raise InvalidRequest("the exponent and the modulus are too large")
        return pow(base, exponent, modulus)
    base, exponent = _number(base), _number(exponent)
    whole = isinstance(base, int) and isinstance(exponent, int)
    # The result has at least so many bits.
    if whole and abs(base) > 1 and (int(base).bit_length() - 1) * exponent > MAX_BITS:
        raise _too_large()
    return bounded(base**exponent)


def _times(left: Any, right: Any) -> Any:
    return bounded(_number(left) * _number(right))


def _shifted_left(value: Any, places: Any) -> Any:
    value, places = _whole(value), _whole(places)
    if value and places > MAX_BITS:
        raise _too_large()
    return bounded(value << places)


def factorial(number: Any) -> int:
    """Return the product of the whole numbers up to one."""
    number = _whole(number)
    # The upper half of the factors is at least half of it each.
    if number > 4 and number // 2 * (number.bit_length() - 2) > MAX_BITS:
        raise _too_large()
    return int(bounded(math.factorial(number)))


def _combinations(count: Any, chosen: Any) -> int:
    count, chosen = _whole(count), _whole(chosen)
    if 0 <= chosen <= count:
        _check_choice(count, min(chosen, count - chosen))
    return int(bounded(math.comb(count, chosen)))


def _permutations(count: Any, chosen: Any = None) -> int:
    count = _whole(count)
    chosen = count if chosen is None else _whole(chosen)
    if 0 <= chosen <= count:
        _check_choice(count, chosen)
    return int(bounded(math.perm(count, chosen)))


def _check_choice(count: int, chosen: int) -> None:
    """Refuse products of so many factors that they would take long; what is allowed is bounded afterwards."""
    if chosen * count.bit_length() > 4 * MAX_BITS:
        raise _too_large()


def _flat(values: tuple[Any, ...]) -> list[Any]:
    """Return the numbers that a function gets, be it one by one or in one list."""
    if len(values) == 1 and isinstance(values[0], list | tuple):
        values = tuple(values[0])
    return [_number(value) for value in values]


def _of_several(function: Callable[[Iterable[Any]], Any]) -> Callable[..., Any]:
    def checked(*values: Any) -> Any:
        return bounded(function(_flat(values)))

    return checked


def _least_common_multiple(values: Iterable[Any]) -> int:
    return reduce(lambda left, right: int(bounded(math.lcm(left, _whole(right)))), values, 1)


def _mean(values: Iterable[Any]) -> Any:
    numbers = list(values)
    if not numbers:
        raise InvalidRequest("the mean of nothing is not defined")
    return sum(numbers) / len(numbers)


def _median(values: Iterable[Any]) -> Any:
    numbers = sorted(values)
    if not numbers:
        raise InvalidRequest("the median of nothing is not defined")
    middle = len(numbers) // 2
    return numbers[middle] if len(numbers) % 2 else (numbers[middle - 1] + numbers[middle]) / 2


def _rounded(value: Any, places: Any = None) -> Any:
    if places is None:
        return bounded(round(_number(value)))
    if abs(_whole(places)) > MAX_PLACES:
        raise InvalidRequest(f"numbers are rounded to at most {MAX_PLACES} places")
    return bounded(round(_number(value), places))


def _xor_hint(_left: Any, _right: Any) -> Any:
    raise InvalidRequest("`^` is no power here: write ** (or xor(a, b) if that is meant)")


_OF_MATH = (
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "copysign", "cos", "cosh", "degrees",
    "erf", "erfc", "exp", "exp2", "expm1", "fabs", "floor", "fmod", "gamma", "isfinite", "isinf", "isnan", "isqrt",
    "ldexp", "lgamma", "log", "log10", "log1p", "log2", "radians", "remainder", "sin", "sinh", "sqrt", "tan", "tanh", "trunc",
)  # fmt: skip

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{name: _on_numbers(getattr(math, name)) for name in _OF_MATH},
    "abs": _on_numbers(abs),
    "bool": _on_numbers(bool),
    "comb": _combinations,
    "factorial": factorial,
    "float": _on_numbers(float),
    "fsum": _of_several(math.fsum),
    "gcd": _of_several(lambda values: math.gcd(*map(_whole, values))),
    "hypot": _of_several(lambda values: math.hypot(*values)),
    "int": _on_numbers(int),
    "lcm": _of_several(_least_common_multiple),
    "max": _of_several(max),
    "mean": _of_several(_mean),
    "median": _of_several(_median),
    "min": _of_several(min),
    "perm": _permutations,
    "pow": power,
    "prod": _of_several(lambda values: reduce(_times, values, 1)),
    "round": _rounded,
    "sum": _of_several(sum),
    "xor": lambda left, right: _whole(left) ^ _whole(right),
}
"""What can be called."""

CONSTANTS: Mapping[str, Number | bool] = {
    "e": math.e,
    "inf": math.inf,
    "nan": math.nan,
    "pi": math.pi,
    "tau": math.tau,
}

OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: _on_numbers(operator.add),
    ast.Sub: _on_numbers(operator.sub),
    ast.Mult: _times,
    ast.Div: _on_numbers(operator.truediv),
    ast.FloorDiv: _on_numbers(operator.floordiv),
    ast.Mod: _on_numbers(operator.mod),
    ast.Pow: power,
    ast.LShift: _shifted_left,
    ast.RShift: lambda value, places: _whole(value) >> _whole(places),
    ast.BitAnd: lambda left, right: _whole(left) & _whole(right),
    ast.BitOr: lambda left, right: _whole(left) | _whole(right),
    ast.BitXor: _xor_hint,
    ast.Invert: lambda value: ~_whole(value),
    ast.USub: _on_numbers(operator.neg),
    ast.UAdd: _on_numbers(operator.pos),
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: _on_numbers(operator.lt),
    ast.LtE: _on_numbers(operator.le),
    ast.Gt: _on_numbers(operator.gt),
    ast.GtE: _on_numbers(operator.ge),
}
"""What the operators do."""
