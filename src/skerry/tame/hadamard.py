"""Hadamard matrices of any order that a short construction reaches, and rotations made of them.

H has entries +1 and -1 and H H^T = n I. A rotation by H / sqrt(n) spreads one channel evenly over all n: the largest entry of the image of
a unit vector e_i is 1 / sqrt(n), the smallest that an orthogonal matrix can give.

    Sylvester   n = 2^k                       H_2n = [[H, H], [H, -H]]
    Paley I     n = q + 1,   q = 3 mod 4      q a power of a prime (Paley 1933)
    Paley II    n = 2 (q + 1), q = 1 mod 4
    four circulants  n = 4 m  [[A, BR, CR, DR], ...], A A^T + B B^T + C C^T + D D^T = 4 m I (Goethals and Seidel 1967); m = 23, 29, 39, 43
    product     H_m x H_n (Kronecker)

Widths of language models are m 2^k. m itself is often no Paley order where 2m or 4m is one (29568 = 924 * 32 and 924 = 2 (461 + 1)), so
every split is tried. Orders up to 256 that are not reached: 188 and 236. Where there is none the rotation is orthogonal and random (QR of a normal matrix).

The rotation is randomised, Q = D H D' / sqrt(n) with signs D and D' from a seed (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456, section 3,
has D), since a plain H has one column of equal entries: a tensor with equal channels would become one outlier. D' only turns signs of the
new channels round; it is there for `keeping_ones`, which wants H's rows mixed too.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int8
from torch import Tensor

from skerry.choices import Choice
from skerry.errors import UnknownOption


class Construction(NamedTuple):
    """How a Hadamard matrix is made: one of order `base` times a power of two.

    Attributes:
        kind: `Sylvester` (base 1), `Paley I`, `Paley II` or `four circulants`.
        base: Order of the first factor.
        q: Prime power of a Paley matrix, size of the four circulants; 0 for Sylvester.
        power: The other factor, a power of two.
    """

    kind: str
    base: int
    q: int
    power: int

    def __str__(self) -> str:
        if self.base == 1:
            return f"Sylvester {self.power}"
        name = f"{self.kind} of order {self.base}, {'m' if self.kind == _FOUR else 'q'} = {self.q}"
        return name if self.power == 1 else f"{name}, times Sylvester {self.power}"


_FOUR = "four circulants"
# Of the four circulants' first rows the places of -1, one place per orbit of the multipliers. Found here by search: rows that are constant
# on the orbits, pairs of rows whose periodic autocorrelations add up to the negative of another pair's.
_CIRCULANTS: dict[int, tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    23: ((22,), ((1, 2, 5, 7, 9), (1, 2, 4, 6), (1, 2, 4, 5, 9, 10, 11), (3, 4, 5, 8, 9))),
    29: (
        (28,),
        (
            (3, 5, 8, 9, 10, 12),
            (1, 7, 11, 13, 14),
            (2, 3, 6, 7, 9, 12, 13, 14),
            (3, 4, 7, 9, 12, 13, 14),
        ),
    ),
    39: ((14, 16), ((3, 6, 7, 12, 13), (4, 6, 13, 21), (4, 6, 7, 12, 21), (2, 3, 7, 12, 13))),
    43: ((4,), ((2, 3, 9), (1, 2, 6, 9), (2, 3, 6), (2, 6, 7))),
}


def find_construction(n: int) -> Construction | None:
    """How to make a Hadamard matrix of order n; None where no construction here reaches it.

    n is 1, 2 or a multiple of 4, or there is none at all. Of several the one with the largest power of two is taken.
    """
    if n < 1 or (n > 2 and n % 4):
        return None
    power = n & -n
    if power == n:
        return Construction("Sylvester", 1, 0, n)
    while power >= 1:
        base = n // power
        if base % 4 == 0 and base // 4 in _CIRCULANTS:
            return Construction(_FOUR, base, base // 4, power)
        if base % 4 == 0 and _prime_power(base - 1):
            return Construction("Paley I", base, base - 1, power)
        if base % 4 == 0 and (base // 2 - 1) % 4 == 1 and _prime_power(base // 2 - 1):
            return Construction("Paley II", base, base // 2 - 1, power)
        power //= 2
    return None


def hadamard(n: int) -> Int8[Tensor, "row column"]:
    """A Hadamard matrix of order n: entries +1 and -1, H H^T = n I.

    Raises:
        UnknownOption: No construction here reaches n.
    """
    how = find_construction(n)
    if how is None:
        raise UnknownOption(
            f"no Hadamard matrix of order {n} is known here; orders are 1, 2 and multiples of 4 that are a Paley order or 92, 116, 156, 172 times a power of two"
        )
    make = {"Paley I": _paley_one, "Paley II": _paley_two, _FOUR: _four_circulants}.get(how.kind)
    matrix = np.ones((1, 1), dtype=np.int8) if make is None else make(how.q)
    return torch.from_numpy(np.kron(matrix, _sylvester(how.power)))


def rotation(n: int, *, seed: int = 0, keep_ones: bool = False) -> Choice[Tensor]:
    """An orthogonal matrix [n n] in float64 that spreads channels: x' = x Q.

    Args:
        n: Width.
        seed: Of the signs, or of the random matrix where there is no Hadamard matrix.
        keep_ones: Q maps the all-ones vector to itself, so that it maps vectors of mean zero to vectors of mean zero: what a LayerNorm
            commutes with. Its entries differ from the Hadamard matrix's by O(1 / n).

    Returns:
        The matrix, and which one it is and why.
    """
    how = find_construction(n)
    if how is None:
        matrix = random_orthogonal(n, seed=seed)
        why = f"random orthogonal: no Hadamard matrix of order {n} is known here"
    else:
        left, right = torch.randint(0, 2, (2, n), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0
        matrix = left.double()[:, None] * hadamard(n).double() * right.double() / n**0.5
        why = f"Hadamard of order {n}: {how}; signs from seed {seed}"
    if keep_ones:
        matrix, why = keeping_ones(matrix), f"{why}; the all-ones direction is kept"
    return Choice(matrix, why)


def random_orthogonal(n: int, *, seed: int = 0) -> Float64[Tensor, "row column"]:
    """Orthogonal and uniform (Haar): QR of a normal matrix with R's diagonal made positive."""
    normal = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(normal)
    return q * torch.sign(torch.diagonal(r))


def keeping_ones(q: Float64[Tensor, "row column"]) -> Float64[Tensor, "row column"]:
    """The orthogonal matrix P q with P the reflection that takes q 1 to 1, so that (P q) 1 = 1, and 1^T (P q) = 1^T too.

    P = I - 2 w w^T with w = (q 1 - 1) / |q 1 - 1|. Limit: q 1 = 1 gives q. With a randomised Hadamard matrix w has entries of size
    1 / sqrt(n) and so has w^T q: the product is of size 1 / n beside the entries' 1 / sqrt(n).
    """
    ones = torch.ones(len(q), dtype=q.dtype)
    w = q @ ones - ones
    norm = w.norm()
    if norm <= 1e-14 * len(q):
        return q.clone()
    w = w / norm
    return q - 2 * torch.outer(w, w @ q)


@cache
def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k and p an odd prime; None where q is no such power."""
    if q < 3 or q % 2 == 0:
        return None
    p = next((d for d in range(3, int(q**0.5) + 1, 2) if q % d == 0), q)
    k = 0
    while q % p == 0:
        q, k = q // p, k + 1
    return (p, k) if q == 1 else None


def _sylvester(n: int) -> np.ndarray:
    from scipy.linalg import hadamard as sylvester

    return sylvester(n, dtype=np.int8)


def _paley_one(q: int) -> np.ndarray:
    """I + S with S skew: S = [[0, 1], [-1, J]], J the Jacobsthal matrix chi(a - b), q = 3 mod 4."""
    skew = np.zeros((q + 1, q + 1), dtype=np.int8)
    skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(q)
    return skew + np.eye(q + 1, dtype=np.int8)


def _paley_two(q: int) -> np.ndarray:
    """C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]] with C = [[0, 1], [1, J]] symmetric, q = 1 mod 4."""
    conference = np.zeros((q + 1, q + 1), dtype=np.int8)
    conference[0, 1:], conference[1:, 0], conference[1:, 1:] = 1, 1, _jacobsthal(q)
    plus = np.array([[1, 1], [1, -1]], dtype=np.int8)
    minus = np.array([[1, -1], [-1, -1]], dtype=np.int8)
    return np.kron(conference, plus) + np.kron(np.eye(q + 1, dtype=np.int8), minus)


def _four_circulants(m: int) -> np.ndarray:
    """The array of Goethals and Seidel, with R the reversal of the order."""
    multipliers, places = _CIRCULANTS[m]
    rows = np.ones((4, m), dtype=np.int8)
    for row, minus in zip(rows, places, strict=True):
        reached, new = set(minus), set(minus)
        while new:
            new = {x * g % m for x in new for g in multipliers} - reached
            reached |= new
        row[list(reached)] = -1
    shift = (np.arange(m)[None, :] - np.arange(m)[:, None]) % m
    a, b, c, d = (row[shift] for row in rows)
    br, cr, dr = (x[:, ::-1] for x in (b, c, d))
    btr, ctr, dtr = (x.T[:, ::-1] for x in (b, c, d))
    return np.block([[a, br, cr, dr], [-br, a, -dtr, ctr], [-cr, dtr, a, -btr], [-dr, -ctr, btr, a]])


def _jacobsthal(q: int) -> np.ndarray:
    """chi(a - b) for all a, b of the field of q elements; chi is 1 at squares, -1 elsewhere, 0 at 0."""
    found = _prime_power(q)
    assert found is not None
    p, k = found
    # An element is a polynomial over the integers mod p of degree below k; its number has its coefficients as digits to base p.
    elements = np.array(list(product(range(p), repeat=k)), dtype=np.int64)
    modulus = _irreducible(p, k)
    character = np.full(q, -1, dtype=np.int8)
    character[_number(_squares(elements, modulus, p), p)] = 1
    character[0] = 0
    rows = [character[_number((a - elements) % p, p)] for a in elements]
    return np.stack(rows)


def _number(elements: np.ndarray, p: int) -> np.ndarray:
    return elements @ (p ** np.arange(elements.shape[1])[::-1])


def _squares(elements: np.ndarray, modulus: np.ndarray, p: int) -> np.ndarray:
    """Every element times itself, modulo the polynomial x^k = modulus (coefficients of the highest power first)."""
    k = elements.shape[1]
    out = np.zeros((len(elements), 2 * k - 1), dtype=np.int64)
    for i in range(k):
        out[:, i : i + k] += elements[:, i : i + 1] * elements
    for i in range(k - 1):  # x^(k + j) = x^j * modulus
        out[:, i + 1 : i + 1 + k] += out[:, i : i + 1] * modulus
    return out[:, k - 1 :] % p


def _irreducible(p: int, k: int) -> np.ndarray:
    """A polynomial m with x^k - m(x) irreducible modulo p: the first that no monic one of at most half its degree divides."""
    if k == 1:
        return np.zeros(1, dtype=np.int64)
    divisors = [(1, *low) for d in range(1, k // 2 + 1) for low in product(range(p), repeat=d)]
    for low in product(range(p), repeat=k):
        if all(any(_remainder((1, *low), divisor, p)) for divisor in divisors):
            return (-np.array(low, dtype=np.int64)) % p
    raise AssertionError("every finite field has an irreducible polynomial of every degree")


def _remainder(a: tuple[int, ...], b: tuple[int, ...], p: int) -> list[int]:
    """Of the division by a monic polynomial; coefficients of the highest power first."""
    rest = list(a)
    for i in range(len(a) - len(b) + 1):
        factor = rest[i]
        for j, c in enumerate(b):
            rest[i + j] = (rest[i + j] - factor * c) % p
    return rest[len(a) - len(b) + 1 :]
