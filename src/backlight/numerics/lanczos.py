"""Eigenvalues, their density and the trace of a symmetric operator that can only be multiplied by vectors.

Lanczos (1950) with full re-orthogonalisation: an orthonormal basis grows by one product a step, and the eigenvalues of the
operator within it, the Ritz values, converge from the ends of the spectrum inwards.  A residual says that *there is* an
eigenvalue near a Ritz value; it does not say that it is the k-th, because the basis may not have seen one that lies further
out.  Two things guard against that.  Two random vectors start the basis and take turns: what one of them hardly contains, or
an eigenvalue that occurs twice, shows by way of the other.  And pairs beyond those asked for, the guards, must settle too.
Where none occurs twice and a start is known that contains what is sought, one start will do (``distinct``).

Parlett, The Symmetric Eigenvalue Problem (1980), chapters 11 to 13; a band of starting vectors: Ruhe (1979); thick restart:
Wu & Simon (2000); density by stochastic Lanczos quadrature: Ubaru, Chen & Saad (2017); trace: Hutchinson (1990).
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

from ..errors import UserError
from .bootstrap import Interval, mean_interval

Array = NDArray[np.float64]
Order = Callable[[Array], NDArray[np.intp]]  # from values to the places of the outermost, first first
Which = Literal["magnitude", "largest", "smallest", "both"]

#: Entries summed in the operator's own type before the sum goes on in float64.  Plain float32 sums over ten million entries
#: bias the largest eigenvalue of a Hessian by 0.3%.
CHUNK = 131_072
#: Random vectors that start the basis.
STARTS = 2
#: Pairs beyond those asked for that must settle, and to which share of themselves; after EASY products for each pair asked
#: for the spectrum is a dense one, which hides more, and the guards must settle as well as the others.  On 56 mini-batches of
#: trained ViTs and CNNs two guards missed an eigenvalue in 2 of 112 searches from random vectors, and a tenth is too loose.
GUARDS, GUARD_TOL, EASY = 3, 1e-2, 6
#: Vectors in the basis, and bytes, beyond which it is compressed to those that matter.
ROWS, MEMORY = 64, 4 * 2**30


class Space(Protocol):
    """Where vectors of ``size`` entries live."""

    @property
    def size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...


class Operator(Space, Protocol):
    """A symmetric matrix known by its products.  Shapes: ``matvec`` (P,) -> (P,) with P = ``size``."""

    def matvec(self, v: Tensor, /) -> Tensor: ...


class Operators(Space, Protocol):
    """``count`` symmetric matrices, each multiplied by a vector of its own at once.  Shapes: ``matvec`` (M, P) -> (M, P)."""

    @property
    def count(self) -> int: ...
    def matvec(self, v: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues in the order asked for, the furthest out first, with their vectors as columns."""

    values: Array  # (k,)
    vectors: Tensor  # (P, k), orthonormal
    residuals: Array  # (k,) |A v - value v|: no eigenvalue need be further from the value than this
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
    """The ``k`` outermost eigenvalues, each to a share ``tol`` of itself, within ``limit`` products.

    ``which``: the largest in magnitude, the algebraically largest or smallest, or both ends in turn, the largest first.
    ``start``: a vector (P,), or up to ``k`` as columns (P, s), thought to be rich in what is sought; zeros are left out, and a
    random one joins.  Fewer than ``k`` pairs return only if the operator is smaller than that.

    An eigenvalue that occurs c times shows c times: where as many equal ones settle as vectors started the basis, another
    random one joins.  ``distinct`` says that none occurs twice, as in the Hessian of a trained network: then all starts are
    mixed into one vector, which saves a fifth of the products.

    A pair has converged if min(r, r^2 / gap) <= tol |value|, with r its residual and the gap that to the next Ritz value, and
    the guards have settled.  Memory: the basis, at most ``memory`` bytes if 3 (k + 4) vectors fit there.
    Errors: UserError for a setting that makes no sense, or a product that is not finite.
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
    """`lanczos` of each of several operators with its own seed and start, in step: as many products as the slowest takes.

    Shapes: ``starts`` (M, P).  The bases share ``memory``.  Those that have finished are multiplied by zero until all have.
    """
    if len(seeds) != operators.count:
        raise UserError(f"{operators.count} operators need as many seeds, got {len(seeds)}")
    searches = [
        _search(operators, k, which, tol, start, distinct, seed, limit, memory // operators.count)
        for start, seed in zip([None] * operators.count if starts is None else starts, seeds, strict=True)
    ]
    vectors = torch.stack([next(search) for search in searches])
    found: dict[int, Eigenpairs] = {}
    while len(found) < len(searches):
        products = operators.matvec(vectors)
        for i, search in enumerate(searches):
            if i not in found:
                try:
                    vectors[i] = search.send(products[i])
                except StopIteration as end:
                    found[i] = end.value
                    vectors[i] = 0
    return [found[i] for i in range(len(searches))]


def _search(
    space: Space, k: int, which: Which, tol: float, start: Tensor | None, distinct: bool, seed: int, limit: int, memory: int
) -> Generator[Tensor, Tensor, Eigenpairs]:
    """Asks for the product of one vector after another, and returns the eigenpairs."""
    _refuse(k, which, tol, limit)
    sought, order = k + GUARDS, ORDER[which]
    basis = Basis(space, max(3 * (k + 4), min(ROWS, memory // (space.size * space.dtype.itemsize))), seed)
    given = [vector / length for column in _columns(start, k) if (length := norm(vector := _fit(column, space)))]
    if distinct:
        basis.add(sum(given, basis.random()))
    else:
        for vector in given:
            basis.add(vector)
        for _ in range(max(1, STARTS - len(given))):
            basis.add_random()
    enough = sought  # products before a first look
    while True:
        basis.take((yield basis.waiting(order)))
        over = basis.complete or basis.matvecs >= limit
        if basis.matvecs < enough and not over:
            continue
        values, within, residuals = basis.ritz()
        top = order(values)[:sought]
        tolerance = np.repeat([tol, GUARD_TOL if basis.matvecs <= EASY * k else tol], [k, GUARDS])
        noise = 10 * torch.finfo(space.dtype).eps * abs(values).max()  # of a product: no pair settles further than this
        settled = errors(values, residuals)[top] <= np.maximum(tolerance[: len(top)] * abs(values[top]), noise)
        proven = bool(settled.all()) and (basis.complete or len(top) == sought)
        if proven and not over and not distinct and repeats(values[top[:k]], tol) >= basis.starts:
            enough = basis.matvecs + math.ceil(basis.matvecs / basis.starts)  # the newcomer gets as many as each had
            basis.add_random()
        elif proven or over:
            break
    top = top[:k]
    return Eigenpairs(values[top], basis.combined(within[:, top]).T, residuals[top], basis.matvecs, settled[:k] & proven)


@dataclass(frozen=True)
class Density:
    """The share of eigenvalues per unit of eigenvalue, smoothed by a normal curve."""

    grid: Array  # (points,) eigenvalues
    density: Interval  # (points,) each; integrates to 1
    width: float  # standard deviation of the curve
    nodes: Array  # (probes, steps) Ritz values; NaN where fewer steps were needed
    weights: Array  # (probes, steps) share of the eigenvalues near each
    matvecs: int


def density(
    operator: Operator,
    *,
    probes: int = 4,
    steps: int = 30,
    seed: int = 0,
    points: int = 1000,
    width: float | None = None,
    memory: int = MEMORY,
) -> Density:
    """The spectral density by stochastic Lanczos quadrature, with a 95% interval over probes (NaN for one probe).

    Each probe is a random vector of signs; its Ritz values, weighted by the squared first entries of their vectors, are a
    quadrature of the density, exact for polynomials of degree 2 ``steps`` - 1.  ``width`` is 1% of the span by default.
    Costs ``probes`` x ``steps`` products.  Errors: UserError if a basis of ``steps`` vectors does not fit into ``memory``.
    """
    steps = min(steps, operator.size)
    if probes < 1 or steps < 1 or points < 2:
        raise UserError(f"a density needs a probe, a step and two points at least, got {probes}, {steps} and {points}")
    if steps > (most := memory // (operator.size * operator.dtype.itemsize)):
        raise UserError(f"{steps} steps need a basis of as many vectors, and {most} fit into the memory given; ask for fewer")
    nodes, weights = np.full((2, probes, steps), np.nan)
    matvecs = 0
    for i, probe in enumerate(signs(operator, probes, seed)):
        basis = Basis(operator, steps, seed)
        basis.add(probe)
        while basis.done < min(basis.held, steps):
            basis.take(operator.matvec(basis.vectors[basis.done]))
        values, within, _ = basis.ritz()
        nodes[i, : len(values)], weights[i, : len(values)] = values, within[0] ** 2
        matvecs += basis.matvecs
    low, high = np.nanmin(nodes), np.nanmax(nodes)
    width = width or 0.01 * (high - low) or 0.01 * abs(high) or 0.01
    grid = np.linspace(low - 5 * width, high + 5 * width, points)
    each = np.stack(
        [smoothed(grid, v[known], w[known], width) for v, w in zip(nodes, weights, strict=True) for known in [~np.isnan(v)]]
    )
    return Density(grid, mean_interval(each, seed=seed), float(width), nodes, weights, matvecs)


def trace(operator: Operator, *, probes: int = 16, seed: int = 0) -> Interval:
    """The sum of all eigenvalues with a 95% interval over probes; exact for a diagonal operator.  Costs ``probes`` products."""
    if probes < 1:
        raise UserError(f"a trace needs at least 1 probe, got {probes}")
    samples = [dot(operator.matvec(z), z) for z in signs(operator, probes, seed)]
    return mean_interval(np.array(samples), seed=seed)


# --- orders, bounds and sums


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
    """How far each Ritz value may be from an eigenvalue: min(r, r^2 / gap), the values in ascending order.

    The gap is that to the next Ritz value, less the residual (Parlett, theorem 11.7.1 asks for that to the spectrum).
    """
    apart = np.concatenate([[np.inf], np.diff(values), [np.inf]])
    gap = np.minimum(apart[:-1], apart[1:]) - residuals
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap > 0, np.minimum(residuals, residuals**2 / gap), residuals)


def repeats(values: Array, tol: float) -> int:
    """How often the most frequent of these eigenvalues occurs, those that ``tol`` cannot tell apart being equal; 0 if all do.

    >>> repeats(np.array([9, 7, 7, 3]), 1e-3), repeats(np.array([7, 7, 7]), 1e-3)
    (2, 0)
    """
    often = int(max((abs(values[:, None] - values) <= tol * abs(values)).sum(1)))
    return often if often < len(values) else 0


def smoothed(grid: Array, values: Array, weights: Array, width: float) -> Array:
    """Weighted normal curves around values.  Shapes: (points,), (n,), (n,) -> (points,)."""
    distance = (grid[:, None] - values) / width
    return np.exp(-(distance**2) / 2) @ weights / (width * math.sqrt(2 * math.pi))


def dots(rows: Tensor, v: Tensor) -> Tensor:
    """Inner products, in float64 beyond CHUNK entries.  Shapes: (n, P), (P,) -> (n,) float64 on the CPU."""
    parts = [rows[:, i : i + CHUNK] @ v[i : i + CHUNK] for i in range(0, len(v), CHUNK)]
    return torch.stack(parts).cpu().double().sum(0)


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two vectors (P,), as `dots` sums it."""
    return float(dots(a[None], b)[0])


def norm(v: Tensor) -> float:
    """Euclidean length, also where squares of the entries would vanish."""
    length = math.sqrt(dot(v, v))
    largest = float(v.abs().max()) if length < 1e-10 else 0.0
    return largest * norm(v / largest) if largest else length


def signs(space: Space, probes: int, seed: int) -> Iterator[Tensor]:
    """Vectors of -1 and 1, each with probability one half."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(probes):
        yield _fit(2 * torch.randint(0, 2, (space.size,), generator=generator, dtype=torch.int8) - 1, space)


def _fit(v: Tensor, space: Space) -> Tensor:
    """A copy where the operator lives, in its type."""
    if v.numel() != space.size:
        raise UserError(f"a vector of {v.numel()} entries does not fit an operator of size {space.size}")
    return v.detach().to(space.device, space.dtype, copy=True)


def _columns(start: Tensor | None, k: int) -> Sequence[Tensor]:
    if start is None:
        return []
    columns = start.reshape(len(start), -1).unbind(1)
    if len(columns) > k or not torch.isfinite(start).all():
        raise UserError(f"start must be one to {k} vectors of finite numbers")
    return columns


def _refuse(k: int, which: str, tol: float, limit: int) -> None:
    if which not in ORDER:
        raise UserError(f"which={which!r} is no end of a spectrum; there are {', '.join(get_args(Which))}")
    if k < 1 or not tol > 0 or limit < k:
        raise UserError(f"lanczos needs k >= 1, tol > 0 and limit >= k, got k={k}, tol={tol} and limit={limit}")


# --- the basis


class Basis:
    """Orthonormal vectors, the first ``done`` of ``held`` multiplied, and what the operator is among them.

    What a product adds to the basis waits in line for its own product; of s vectors to start from, s wait at a time.
    Memory: ``rows`` + 2 vectors, of which only those held are written to.
    """

    def __init__(self, space: Space, rows: int, seed: int) -> None:
        self.space, self.rows = space, min(rows, space.size)
        self.vectors = torch.empty(self.rows + 2, space.size, dtype=space.dtype, device=space.device)
        self.among = np.zeros((self.rows + 2, self.rows + 2))
        self.generator = torch.Generator().manual_seed(seed)
        self.done = self.held = self.starts = self.matvecs = 0

    @property
    def complete(self) -> bool:
        """The basis spans everything, so its Ritz pairs are the eigenpairs."""
        return self.done == self.space.size

    def add(self, vector: Tensor) -> None:
        """A vector to start from; nothing if the basis spans it already."""
        self.starts += self._join(vector)[1] > 0

    def add_random(self) -> None:
        self.add(self.random())

    def random(self) -> Tensor:
        """Of length 1.  Shapes: -> (P,)."""
        vector = _fit(torch.randn(self.space.size, generator=self.generator), self.space)
        return vector.div_(norm(vector))

    def waiting(self, order: Order) -> Tensor:
        """The next vector to multiply.  Where the rows are full, the outer half of the Ritz vectors stays (thick restart)."""
        if self.held >= self.rows < self.space.size:
            self._compress(order, self.rows // 2)
        while self.done == self.held:  # the space so far is invariant: go on outside it
            self.add_random()
        return self.vectors[self.done]

    def take(self, product: Tensor) -> None:
        """The product of the next vector joins the line.  Errors: UserError if it is not finite."""
        j, before = self.done, self.held
        if product.data_ptr() == self.vectors[j].data_ptr():
            product = product.clone()
        coefficients, length = self._join(product)
        self.among[:before, j] = self.among[j, :before] = coefficients
        if length:
            self.among[before, j] = self.among[j, before] = length
        self.done += 1
        self.matvecs += 1

    def ritz(self) -> tuple[Array, Array, Array]:
        """Values (m,) ascending, vectors (m, m) in coordinates of the basis as columns, residuals (m,)."""
        values, within = np.linalg.eigh(self.among[: self.done, : self.done])
        return values, within, np.linalg.norm(self.among[self.done : self.held, : self.done] @ within, axis=0)

    def combined(self, within: Array) -> Tensor:
        """Vectors from their coordinates.  Shapes: (m, k) -> (k, P)."""
        return self._coordinates(within.T) @ self.vectors[: self.done]

    def _join(self, vector: Tensor) -> tuple[Array, float]:
        """Orthogonalise in place; hold the rest, normalised.  Returns coefficients in the basis and the length of the rest.

        First against the latest vectors, which take the bulk of a product and cost little, then against all, and again as long
        as much cancels: one pass alone multiplies what is not orthogonal by |before| / |after| at each step.  What is left of
        a vector in the span is noise, and its length is 0.
        """
        coefficients = np.zeros(self.held)
        whole = norm(vector)
        if not math.isfinite(whole):
            raise UserError("a product of the operator is not finite, so it has no eigenvalues")
        latest = slice(max(0, self.done - self.starts - 1), self.held)
        after = whole
        for span in (latest, *3 * [slice(0, self.held)]):
            before = after
            held = self.vectors[span]
            more = dots(held, vector).numpy()
            vector.addmv_(held.T, self._coordinates(more), alpha=-1)
            coefficients[span] += more
            after = norm(vector)
            if span is not latest and after > 0.7 * before:
                break
        if self.held == self.space.size or after <= 10 * torch.finfo(vector.dtype).eps * whole:
            return coefficients, 0.0
        torch.div(vector, after, out=self.vectors[self.held])
        self.held += 1
        return coefficients, after

    def _compress(self, order: Order, keep: int) -> None:
        """Replace the vectors multiplied by their ``keep`` outermost Ritz vectors; those in line stay in line."""
        values, within, _ = self.ritz()
        chosen = order(values)[:keep]
        line = slice(self.done, self.held)
        waiting, coupling = self.held - self.done, self.among[line, : self.done] @ within[:, chosen]
        turn = self._coordinates(within[:, chosen].T)
        for i in range(0, self.space.size, CHUNK):
            part = self.vectors[:, i : i + CHUNK]
            part[: keep + waiting] = torch.cat([turn @ part[: self.done], part[line]])
        self.among[:] = 0
        self.among[range(keep), range(keep)] = values[chosen]
        self.done, self.held = keep, keep + waiting
        self.among[keep : self.held, :keep] = coupling
        self.among[:keep, keep : self.held] = coupling.T

    def _coordinates(self, numbers: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(self.space.device, self.space.dtype)
