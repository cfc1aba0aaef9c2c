"""The inverse of the normal distribution, with the same bits on every machine.

Algorithm AS 241 of M. J. Wichura, "The percentage points of the normal distribution" (Applied Statistics 37, 1988),
`PPND16`, whose coefficients these are: a quotient of two polynomials in the middle, and two others of the logarithm's
root in the tails. Its relative error is about 1e-16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["inverse_normal"]

# The highest power first.
_MIDDLE = (
    (
        *(2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4),
        *(1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    ),
    (
        *(5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4),
        *(5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
    ),
)
_TAIL = (
    (
        *(7.7454501427834140764e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0),
        *(3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    ),
    (
        *(1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1),
        *(6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
    ),
)
_FAR_TAIL = (
    (
        *(2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2),
        *(2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    ),
    (
        *(2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4),
        *(1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
    ),
)
_LN2 = math.log(2.0)
_ROOT_HALF = math.sqrt(0.5)


def inverse_normal(unit: np.ndarray) -> np.ndarray:
    """The number below which a standard normal variable lies with a given probability.

    Args:
        unit: float64 in the open interval (0, 1).

    Returns:
        float64 of the same shape.
    """
    centred = unit - 0.5
    result = centred * _quotient(_MIDDLE, 0.180625 - centred * centred)
    outside = np.flatnonzero(np.abs(centred) > 0.425)
    if outside.size:
        smaller = np.minimum(unit[outside], 1.0 - unit[outside])
        root = np.sqrt(-_log(smaller))
        tail = np.where(root <= 5.0, _quotient(_TAIL, root - 1.6), _quotient(_FAR_TAIL, root - 5.0))
        result[outside] = np.copysign(tail, centred[outside])
    return result


def _quotient(polynomials: tuple[Sequence[float], Sequence[float]], x: np.ndarray) -> np.ndarray:
    numerator, denominator = (_horner(coefficients, x) for coefficients in polynomials)
    return numerator / denominator


def _horner(coefficients: Sequence[float], x: np.ndarray) -> np.ndarray:
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def _log(x: np.ndarray) -> np.ndarray:
    """The natural logarithm in operations that are rounded alike everywhere, to about 1e-16.

    log(m 2^e) = e log 2 + 2 artanh(s) with s = (m - 1) / (m + 1); m between sqrt(1/2) and sqrt(2), so that |s| < 0.172
    and eleven terms of the series are enough.
    """
    mantissa, exponent = np.frexp(x)
    low = mantissa < _ROOT_HALF
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = _horner([1.0 / (2 * k + 1) for k in range(11, -1, -1)], s * s)
    return (exponent - low) * _LN2 + 2.0 * s * series
