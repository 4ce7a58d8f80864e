"""The outermost eigenvalues of a symmetric operator that is known only by its products with vectors.

Lanczos (1950) with full re-orthogonalisation.  An orthonormal basis grows by one product per step.  The eigenvalues of the
operator projected onto it, the Ritz values, converge from the ends of the spectrum inwards.  The residual of a Ritz value
says that *an* eigenvalue is near.  It does not say that this is the k-th one, because the basis may lack one further out.
Two precautions: two random vectors start the basis, so that an eigenvalue that one of them hardly contains, or one that
occurs twice, appears through the other; and the next few pairs, the guards, must converge too.  If no eigenvalue occurs twice
and the caller knows a good start vector, one start vector is enough (``distinct``).

Parlett, The Symmetric Eigenvalue Problem (1980), chapters 11 to 13; several start vectors: Ruhe (1979); thick restart:
Wu & Simon (2000).  scipy's eigsh stores its basis on the CPU and has no guards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backlight.errors import UserError

Array = NDArray[np.float64]


#: From values to their indices, the outermost value first.
Order = Callable[[Array], NDArray[np.intp]]
Which = Literal["magnitude", "largest", "smallest", "both"]

#: Entries summed in the operator's type; these sums are added in float64.  Plain float32 sums over ten million entries bias
#: the largest eigenvalue of a Hessian by 0.3%.
CHUNK = 131_072
#: Random vectors that start the basis.
STARTS = 2
#: Additional pairs that must converge, and their tolerance.  A search of more than EASY products per requested pair has a
#: dense spectrum, which hides more; the guards then need the tolerance of the requested pairs.  On 56 mini-batches of trained
#: ViTs and CNNs, two guards missed an eigenvalue in 2 of 112 searches from random vectors; a tolerance of 0.1 is too loose.
GUARDS, GUARD_TOL, EASY = 3, 1e-2, 6
#: Largest group of neighbouring Ritz values with one error bound.
TOGETHER = 4
#: Largest number of vectors and of bytes of the basis; beyond it the basis is compressed to its outermost Ritz vectors.
ROWS, MEMORY = 64, 4 * 2**30


class Space(Protocol):
    """The vectors that an operator multiplies."""

    @property
    def size(self) -> int:
        """Entries of a vector."""

    @property
    def device(self) -> torch.device:
        """Where vectors are stored."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of an entry."""


class Operator(Space, Protocol):
    """A symmetric matrix that is known only by its products."""

    def matvec(self, v: Tensor, /) -> Tensor:
        """The product with a vector.  Shapes: (P,) -> (P,) with P = ``size``."""


class Operators(Space, Protocol):
    """Several symmetric matrices that are multiplied at once."""

    @property
    def count(self) -> int:
        """Number of matrices."""

    def matvec(self, v: Tensor, /) -> Tensor:
        """The product of each matrix with one vector.  Shapes: (M, P) -> (M, P) with M = ``count``."""


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues in the requested order, the outermost first, with their vectors as columns."""

    values: Array  # (k,)
    vectors: Tensor  # (P, k), orthonormal
    residuals: Array  # (k,) |A v - value v|: an eigenvalue is at most this far from the value
    matvecs: int  # products used
    converged: NDArray[np.bool_]  # (k,)


def lanczos(
    operator: Operator,
    k: int = 5,
    *,
    which: Which = "magnitude",
    tol: float = 1e-3,
    start: Tensor | None = None,
    distinct: bool = False,
    seed: int = 0,
    limit: int = 300,
    memory: int = MEMORY,
) -> Eigenpairs:
    """The ``k`` outermost eigenvalues, each with relative error at most ``tol``, within ``limit`` products.

    ``which``: the largest in magnitude, the algebraically largest or smallest, or both ends in turn, the largest first.
    ``start``: a vector (P,), or up to ``k`` as columns (P, s), close to the wanted eigenvectors; zero vectors are ignored, and
    a random vector is added.  An operator of size P < ``k`` returns P pairs.

    An eigenvalue that occurs c times is returned c times: if as many equal eigenvalues converge as vectors started the
    basis, another random vector is added.  ``distinct`` states that none occurs twice, as in the Hessian of a trained
    network; then the sum of all start vectors starts the basis, which saves a fifth of the products.

    A pair has converged if the bound on the error of its value (`errors`) is at most tol abs(value), and if the guards have
    converged.  Memory: the basis, at most ``memory`` bytes if 3 (k + 4) vectors fit.
    Errors: UserError for a setting out of bounds, or a product that is not finite.
    """
    search = _search(operator, k, which, tol, start, distinct, seed, limit, memory)
    vector = next(search)
    while True:
        try:
            vector = search.send(operator.matvec(vector))
        except StopIteration as end:
            return end.value


def lanczos_each(
    operators: Operators,
    k: int = 5,
    *,
    seeds: Sequence[int],
    starts: Tensor | None = None,
    which: Which = "magnitude",
    tol: float = 1e-3,
    distinct: bool = False,
    limit: int = 300,
    memory: int = MEMORY,
) -> list[Eigenpairs]:
    """`lanczos` for each of several operators at once, each with one seed and start: as many products as the slowest needs.

    The bases share ``memory``.  A finished operator is multiplied by zero until all are finished.  Shapes: ``starts`` (M, P).
    """
    if len(seeds) != operators.count:
        raise UserError(f"there are {len(seeds)} seeds for {operators.count} operators; give one seed per operator")
    searches = [
        _search(operators, k, which, tol, start, distinct, seed, limit, memory // operators.count)
        for start, seed in zip([None] * operators.count if starts is None else starts, seeds, strict=True)
    ]
    vectors = torch.stack([next(search) for search in searches])
    pairs: dict[int, Eigenpairs] = {}
    while len(pairs) < len(searches):
        products = operators.matvec(vectors)
        for i, search in enumerate(searches):
            if i not in pairs:
                try:
                    vectors[i] = search.send(products[i])
                except StopIteration as end:
                    pairs[i] = end.value
                    vectors[i] = 0
    return [pairs[i] for i in range(len(searches))]


def _search(
    space: Space, k: int, which: Which, tol: float, start: Tensor | None, distinct: bool, seed: int, limit: int, memory: int
) -> Generator[Tensor, Tensor, Eigenpairs]:
    """Yields vectors to multiply, receives their products, and returns the eigenpairs."""
    _refuse(k, which, tol, limit)
    wanted, order = k + GUARDS, ORDER[which]
    basis = Basis(space, max(3 * (k + 4), min(ROWS, memory // (space.size * space.dtype.itemsize))), seed)
    starts = [vector / length for column in _columns(start, k) if (length := norm(vector := _copied(column, space)))]
    if distinct:
        basis.add(sum(starts, basis.random()))
    else:
        for vector in starts:
            basis.add(vector)
        for _ in range(max(1, STARTS - len(starts))):
            basis.add_random()
    next_check = wanted  # number of products
    while True:
        basis.take((yield basis.next_vector(order)))
        last = basis.complete or basis.matvecs >= limit
        if basis.matvecs < next_check and not last:
            continue
        values, coordinates, residuals = basis.ritz()
        top = order(values)[:wanted]
        tolerance = np.repeat([tol, GUARD_TOL if basis.matvecs <= EASY * k else tol], [k, GUARDS])
        noise = 10 * torch.finfo(space.dtype).eps * abs(values).max()  # rounding error of a product; no pair is more exact
        converged = errors(values, residuals)[top] <= np.maximum(tolerance[: len(top)] * abs(values[top]), noise)
        done = bool(converged.all()) and (basis.complete or len(top) == wanted)
        if done and not last and not distinct and repeats(values[top[:k]], tol) >= basis.starts:
            next_check = basis.matvecs + math.ceil(basis.matvecs / basis.starts)  # as many products as each earlier start had
            basis.add_random()
        elif done or last:
            break
    top = top[:k]
    return Eigenpairs(values[top], basis.combined(coordinates[:, top]).T, residuals[top], basis.matvecs, converged[:k] & done)


def _magnitude(values: Array) -> NDArray[np.intp]:
    return np.argsort(-abs(values), kind="stable")


def _largest(values: Array) -> NDArray[np.intp]:
    return np.argsort(-values, kind="stable")


def _smallest(values: Array) -> NDArray[np.intp]:
    return np.argsort(values, kind="stable")


def _both(values: Array) -> NDArray[np.intp]:
    """Largest, smallest, second largest, and so on."""
    order = np.empty(len(values), np.intp)
    order[::2], order[1::2] = _largest(values)[: (len(values) + 1) // 2], _smallest(values)[: len(values) // 2]
    return order


ORDER: dict[str, Order] = {
    "magnitude": _magnitude,
    "largest": _largest,
    "smallest": _smallest,
    "both": _both,
}


def errors(values: Array, residuals: Array) -> Array:
    """How far each Ritz value can be from an eigenvalue.  Values in ascending order.

    The smallest of its residual r and of R^2 / gap over all groups of at most `TOGETHER` neighbours that contain it.  R^2 is
    the sum of r^2 of the group, and gap the distance of the group to the next Ritz value, less R (Parlett, theorem 11.7.1;
    for a group Mathias 1998, "Quadratic residual bounds for the Hermitian eigenvalue problem"; both with the distance to the
    rest of the spectrum).  So close eigenvalues are known before their vectors can be told apart.
    Shapes: (m,), (m,) -> (m,).
    """
    bounds, squares = residuals.copy(), residuals**2
    apart = np.concatenate([[np.inf], values[1:] - values[:-1], [np.inf]])
    of_group = squares
    for size in range(1, min(TOGETHER, len(values) - 1) + 1):
        gaps = np.minimum(apart[:-size], apart[size:]) - np.sqrt(of_group)
        together = np.where(gaps > 0, of_group / np.where(gaps > 0, gaps, 1), np.inf)
        for place in range(size):
            part = bounds[place : place + len(gaps)]
            np.minimum(part, together, out=part)
        of_group = of_group[:-1] + squares[size:]
    return bounds


def repeats(values: Array, tol: float) -> int:
    """How often the most frequent of these eigenvalues occurs, equal up to ``tol``; 0 if all are equal.

    >>> repeats(np.array([9, 7, 7, 3]), 1e-3), repeats(np.array([7, 7, 7]), 1e-3)
    (2, 0)
    """
    most = int(max((abs(values[:, None] - values) <= tol * abs(values)).sum(1)))
    return most if most < len(values) else 0


def dots(rows: Tensor, v: Tensor) -> Tensor:
    """Inner products; sums of CHUNK entries are added in float64.  Shapes: (n, P), (P,) -> (n,) float64 on the CPU."""
    parts = [rows[:, i : i + CHUNK] @ v[i : i + CHUNK] for i in range(0, len(v), CHUNK)]
    return torch.stack(parts).cpu().double().sum(0)


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two vectors, summed as in `dots`.  Shapes: (P,), (P,)."""
    return float(dots(a[None], b)[0])


def norm(v: Tensor) -> float:
    """Euclidean length, also of entries whose squares underflow.  Shapes: (P,)."""
    return _length(dot(v, v), v)


def _length(square: float, v: Tensor) -> float:
    """The length of a vector whose squared length is known, unless that underflows."""
    largest = float(v.abs().max()) if square < 1e-20 else 0.0
    return largest * norm(v / largest) if largest else math.sqrt(square)


def signs(space: Space, probes: int, seed: int) -> Iterator[Tensor]:
    """``probes`` random vectors of -1 and 1, each with probability one half.  Shapes: -> (P,) each."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(probes):
        yield _copied(2 * torch.randint(0, 2, (space.size,), generator=generator, dtype=torch.int8) - 1, space)


def _copied(v: Tensor, space: Space) -> Tensor:
    """A copy on the device and in the type of the operator."""
    if v.numel() != space.size:
        raise UserError(f"a vector of {v.numel()} entries does not fit an operator of size {space.size}")
    return v.detach().to(space.device, space.dtype, copy=True)


def _columns(start: Tensor | None, k: int) -> Sequence[Tensor]:
    if start is None:
        return []
    columns = start.reshape(len(start), -1).unbind(1)
    if len(columns) > k or not torch.isfinite(start).all():
        raise UserError(f"start must be 1 to {k} vectors of finite numbers")
    return columns


def _refuse(k: int, which: str, tol: float, limit: int) -> None:
    if which not in ORDER:
        raise UserError(f"which is {which!r}; it must be {' or '.join(get_args(Which))}")
    if k < 1 or not tol > 0 or limit < k:
        raise UserError(f"lanczos needs k >= 1, tol > 0 and limit >= k, got k={k}, tol={tol} and limit={limit}")


class Basis:
    """Orthonormal vectors, ``done`` of ``held`` multiplied so far, and the operator projected onto them.

    The rest of each product, orthogonal to the basis, is appended and waits to be multiplied; with s start vectors, s wait.
    Memory: ``rows`` + 2 vectors; pages of vectors that are not in use are not touched.
    """

    def __init__(self, space: Space, rows: int, seed: int) -> None:
        self.space, self.rows = space, min(rows, space.size)
        self.vectors = torch.empty(self.rows + 2, space.size, dtype=space.dtype, device=space.device)
        self.projected = np.zeros((self.rows + 2, self.rows + 2))
        self.generator = torch.Generator().manual_seed(seed)
        self.done = self.held = self.starts = self.matvecs = 0

    @property
    def complete(self) -> bool:
        """Whether the basis spans the space, so that its Ritz pairs are the eigenpairs."""
        return self.done == self.space.size

    def add(self, vector: Tensor) -> None:
        """Append a start vector, unless the basis spans it already."""
        self.starts += self._append(vector)[1] > 0

    def add_random(self) -> None:
        """Append a random start vector."""
        self.add(self.random())

    def random(self) -> Tensor:
        """A random vector of length 1.  Shapes: -> (P,)."""
        vector = _copied(torch.randn(self.space.size, generator=self.generator), self.space)
        return vector.div_(norm(vector))

    def next_vector(self, order: Order) -> Tensor:
        """The next vector to multiply.  A full basis is first reduced to its outer Ritz vectors (thick restart)."""
        if self.held >= self.rows < self.space.size:
            self._compress(order, self.rows // 2)
        while self.done == self.held:  # the span is invariant: continue outside it
            self.add_random()
        return self.vectors[self.done]

    def take(self, product: Tensor) -> None:
        """Append the product of the next vector.  Errors: UserError if it is not finite."""
        j, before = self.done, self.held
        coefficients, length = self._append(product)
        self.projected[:before, j] = self.projected[j, :before] = coefficients
        if length:
            self.projected[before, j] = self.projected[j, before] = length
        self.done += 1
        self.matvecs += 1

    def ritz(self) -> tuple[Array, Array, Array]:
        """Ritz values (m,) in ascending order, coordinates of the Ritz vectors as columns (m, m), residuals (m,)."""
        values, coordinates = np.linalg.eigh(self.projected[: self.done, : self.done])
        residuals = np.linalg.norm(self.projected[self.done : self.held, : self.done] @ coordinates, axis=0)
        return values, coordinates, residuals

    def combined(self, coordinates: Array) -> Tensor:
        """Vectors from their coordinates.  Shapes: (m, k) -> (k, P)."""
        return self._tensor(coordinates.T) @ self.vectors[: self.done]

    def _append(self, vector: Tensor) -> tuple[Array, float]:
        """Append the rest of a vector outside the basis, normalised.

        Returns the coefficients in the basis and the length of the rest.

        First the latest vectors are subtracted, which hold most of a product and cost little.  Then all, repeated while much
        cancels, because one pass multiplies errors of orthogonality by |before| / |after| in each step.  The rest of a vector
        within the span is rounding error, and its length is 0.
        """
        coefficients, rest = np.zeros(self.held), self.vectors[self.held]
        rest.copy_(vector)
        latest = max(0, self.done - self.starts - 1)
        length = before = 0.0
        for attempt, first in enumerate((latest, 0, 0, 0)):
            *more, square = dots(self.vectors[first : self.held + 1], rest).tolist()  # with itself too
            before = after = _length(square, rest)
            if not attempt:
                length = before
                if not math.isfinite(length):
                    raise UserError("a product of the operator is not finite, so it has no eigenvalues")
            if more:
                rest.addmv_(self.vectors[first : self.held].T, self._tensor(np.array(more)), alpha=-1)
                coefficients[first:] += more
                after = norm(rest) if attempt else before
            if attempt and after > 0.7 * before:
                break
        if self.held == self.space.size or after <= 10 * torch.finfo(rest.dtype).eps * length:
            return coefficients, 0.0
        rest.div_(after)
        self.held += 1
        return coefficients, after

    def _compress(self, order: Order, size: int) -> None:
        """Replace the multiplied vectors by their ``size`` outermost Ritz vectors; those not yet multiplied stay."""
        values, coordinates, _ = self.ritz()
        outer = order(values)[:size]
        line = slice(self.done, self.held)
        waiting, coupling = self.held - self.done, self.projected[line, : self.done] @ coordinates[:, outer]
        rotation = self._tensor(coordinates[:, outer].T)
        for i in range(0, self.space.size, CHUNK):
            part = self.vectors[:, i : i + CHUNK]
            part[: size + waiting] = torch.cat([rotation @ part[: self.done], part[line]])
        self.projected[:] = 0
        self.projected[range(size), range(size)] = values[outer]
        self.done, self.held = size, size + waiting
        self.projected[size : self.held, :size] = coupling
        self.projected[:size, size : self.held] = coupling.T

    def _tensor(self, numbers: Array) -> Tensor:
        """Numbers on the device and in the type of the operator."""
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(self.space.device, self.space.dtype)
