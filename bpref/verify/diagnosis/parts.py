"""A term is missing, has the wrong sign or a wrong factor: terms of the chain rule, or parts that are guessed."""

from collections.abc import Iterator, Mapping
from itertools import chain, combinations, product

import numpy as np

from bpref.verify.diagnosis.factors import is_small_fraction, name_axes, name_number, show
from bpref.verify.diagnosis.residual import (
    Diagnosis,
    Residual,
    agree,
    cotangents_of_outputs,
    count_points,
    informative,
    is_clear,
    is_floating,
    like,
)

MOST_TERMS = 200
"""Of more terms than these only single ones are tried, not pairs."""

MOST_ELEMENTS = 10**6
"""Of larger arrays no terms are guessed, nor from more arrays than `MOST_ARRAYS`."""

MOST_ARRAYS = 24

LITTLE = 1e-6
"""The square of what may be left of a residual before it is looked at closely, relatively."""

INDEPENDENT = 1e-5
"""The least sine of the angle between two arrays that count as different."""


def known_term(r: Residual) -> Diagnosis | None:
    """The terms of the chain rule that the caller knows."""
    if r.terms is None or not is_clear(r, r.hand - r.oracle, r.oracle):
        return None
    return _of_terms(r, {label: v for label, v in r.terms().items() if _is_usable(r, v)})


def guessed_term(r: Residual) -> Diagnosis | None:
    """Terms that the oracle seems to have, or a residual that is an array in sight."""
    if not r.shape or r.oracle.size > MOST_ELEMENTS or not is_clear(r, r.hand - r.oracle, r.oracle):
        return None
    return _of_guessed_parts(r) or _of_known_arrays(r)


def _is_usable(r: Residual, v: np.ndarray) -> bool:
    return v.shape == r.oracle.shape and bool(np.isfinite(v).all()) and bool(v.any())


def _of_terms(r: Residual, terms: Mapping[str, np.ndarray]) -> Diagnosis | None:
    """`hand - oracle` is a constant multiple of one term, or of each of two; or the hand is one term alone."""
    found = _of_one(r, terms) or _of_two(r, terms)
    if found is not None or len(terms) < 3:
        return found
    for label, t in terms.items():
        if agree(r, t) and informative(t).sum() > 1:
            return Diagnosis("missing_term", f"{label} alone: all {len(terms) - 1} others are missing")
    return None


def _of_one(r: Residual, terms: Mapping[str, np.ndarray]) -> Diagnosis | None:
    """The likeliest: a term that is missing, before one with the wrong sign, before one with another factor.

    Terms that are equal, such as the two of `v * v`, may also be wrong together.
    """
    fits = []
    for label, t in terms.items():
        c = _multiples(r, [t])
        if c is not None:
            alike = [label, *(other for other, v in terms.items() if other != label and agree(r, v, value=t))]
            fits += [(f"{label} (or {alike[1]})" if alike[1:] else label, c[0])]
            fits += [(f"each of {' and '.join(alike)}", c[0] / len(alike))] if alike[1:] else []
    if not fits:
        return None
    label, c = min(fits, key=lambda fit: (abs(fit[1] + 1) > 1e-6, abs(fit[1] + 2) > 1e-6))
    return Diagnosis(_kind(np.array([c])), _say(r, label, c))


def _of_two(r: Residual, terms: Mapping[str, np.ndarray]) -> Diagnosis | None:
    for a, b in _likely_pairs(r, terms):
        c = _multiples(r, [terms[a], terms[b]])
        if c is not None:
            return Diagnosis(_kind(c), f"{_say(r, a, c[0])}; {_say(r, b, c[1])}")
    return None


def _kind(c: np.ndarray) -> str:
    """A term that is left out or has the wrong sign is missing; one that has another weight has a factor."""
    return "missing_term" if all(min(abs(v + 1), abs(v + 2)) <= 1e-6 for v in c) else "factor"


def _likely_pairs(r: Residual, terms: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """The pairs that leave little of the residual, by their inner products alone: there may be thousands of pairs."""
    if not 1 < len(terms) <= MOST_TERMS:
        return
    rows = np.stack([t.reshape(-1) / np.linalg.norm(t) for t in terms.values()])
    target = (r.hand - r.oracle).reshape(-1)
    target = target / np.linalg.norm(target)
    among, with_target = rows.conj() @ rows.T, rows.conj() @ target
    for (i, a), (j, b) in combinations(enumerate(terms), 2):
        square = 1 - abs(among[i, j]) ** 2
        if square < INDEPENDENT**2:
            continue
        x = (with_target[i] - among[i, j] * with_target[j]) / square
        y = (with_target[j] - among[j, i] * with_target[i]) / square
        left = 1 - (with_target[i].conj() * x + with_target[j].conj() * y).real
        if left < LITTLE:
            yield a, b


def _multiples(r: Residual, terms: list[np.ndarray]) -> np.ndarray | None:
    """The constants c with `hand = oracle + sum c t` at every element, or None.

    Two points are needed, unless the constants are simple ones; and none of the terms may be lost in round-off.
    """
    difference = r.hand - r.oracle
    c = _combination(r, terms, difference, r.oracle)
    if c is None or not all(is_clear(r, value * t, r.oracle) for value, t in zip(c, terms, strict=True)):
        return None
    if not all(is_small_fraction(r, value) for value in c) and count_points(r, difference) < 2:
        return None
    return c


def _combination(r: Residual, terms: list[np.ndarray], target: np.ndarray, *parts: np.ndarray) -> np.ndarray | None:
    """The constants c with `target = sum c t`, or None; `parts` are what the target was computed from.

    The fit must be able to fail: there are more elements than constants, and the terms are independent.
    """
    if informative(target).sum() < len(terms) + 2:
        return None
    columns = np.stack([t.reshape(-1) for t in terms], axis=1)
    size = np.linalg.norm(columns, axis=0)
    c, _, _, singular = np.linalg.lstsq(columns / size, target.reshape(-1))
    if singular[-1] < INDEPENDENT * singular[0]:
        return None
    c = np.array([_rounded(value) for value in c / size])
    added = [value * t for value, t in zip(c, terms, strict=True)]
    return c if agree(r, np.sum(added, axis=0), *parts, *added, value=target) else None


def _rounded(c: complex) -> complex:
    """A fitted number without the rounding of the fit, where it is next to a small fraction."""
    near = np.round(12 * c) / 12
    return near if near != 0 and abs(c - near) < 1e-9 * abs(near) else c


def _say(r: Residual, label: str, c: complex) -> str:
    """What a residual of c times a term says of the term."""
    if c == -1:
        return f"{label} is missing"
    if c == -2:
        return f"{label} has the wrong sign"
    known = name_number(r, 1 + c)
    return f"{label} has a factor {show(1 + c)}" + (f" ({known})" if known else "")


def _of_guessed_parts(r: Residual) -> Diagnosis | None:
    """Where the oracle is made of two recognisable arrays, or row by row of up to three, those are its terms."""
    guesses = [_constant_multiples(r), *(_decompositions(r, axes) for axes in _row_axes(r.shape))]
    usable = [
        {label: t for label, t in terms.items() if _is_usable(r, t) and is_clear(r, t, r.oracle)}
        for terms in chain.from_iterable(guesses)
    ]
    several = [terms for terms in usable if len(terms) > 1]
    for search in (_of_one, _of_two):
        for terms in several:
            found = search(r, terms)
            if found is not None:
                return found
    return None


def _constant_multiples(r: Residual) -> Iterator[dict[str, np.ndarray]]:
    """Two arrays that make the oracle by one constant each."""
    pool = list(recognisable(r, tuple(range(len(r.shape)))).items())[:MOST_ARRAYS]
    for (a, t), (b, u) in combinations(pool, 2):
        c = _combination(r, [t, u], r.oracle)
        if c is not None:
            yield {f"the term proportional to {a}": c[0] * t, f"the term proportional to {b}": c[1] * u}


def _row_axes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The sets of axes over which norms and means are taken."""
    every = tuple(range(len(shape)))
    sets = [every[-1:], *[(a,) for a in every[:-1]], every, every[:-1], every[1:], every[1:-1]]
    return [s for i, s in enumerate(sets) if s and s not in sets[:i]]


def _decompositions(r: Residual, axes: tuple[int, ...]) -> Iterator[dict[str, np.ndarray]]:
    """Terms that add up to the oracle, each a number per row times a recognisable array.

    Which terms these are is open where an array and a constant are among them: a projection on x may be one on
    x - mean(x), the rest belonging to the constant. All are given.
    """
    over = tuple(a + 1 for a in axes)
    length = int(np.prod([r.shape[a] for a in axes]))
    pool = recognisable(r, axes)
    for names, with_one in _spans(list(pool)[:MOST_ARRAYS]):
        count = len(names) + with_one
        if length < count + 2:
            continue
        basis = [pool[name] for name in names] + [np.ones_like(r.oracle)] * with_one
        numbers = _fit_rows(basis, r.oracle, over)
        if numbers is None:
            continue
        parts = [c * v for c, v in zip(numbers, basis, strict=True)]
        if not agree(r, np.sum(parts, axis=0), *parts, value=r.oracle):
            continue
        for centred in product((False, True), repeat=len(names)) if with_one else [(False,) * len(names)]:
            yield _terms_of(r, names, parts, centred, axes)
        yield _across(r, names, parts, axes)


def _spans(names: list[str]) -> Iterator[tuple[tuple[str, ...], bool]]:
    yield from (((name,), True) for name in names)
    for pair in combinations(names, 2):
        yield pair, False
        yield pair, True


def _terms_of(
    r: Residual, names: tuple[str, ...], parts: list[np.ndarray], centred: tuple[bool, ...], axes: tuple[int, ...]
) -> dict[str, np.ndarray]:
    along, over = name_axes(axes), tuple(a + 1 for a in axes)
    terms, constant = {}, parts[-1] if len(parts) > len(names) else None
    for name, part, is_centred in zip(names, parts, centred, strict=False):
        mean = part.mean(axis=over, keepdims=True)
        if is_centred and constant is not None:
            terms[f"the term proportional to {name} - mean({name}) along {along}"] = part - mean
            constant = constant + mean
        else:
            terms[f"the term proportional to {name} along {along}"] = part
    if constant is not None:
        terms[f"the term that is constant along {along}"] = constant
    return terms


def _across(
    r: Residual, names: tuple[str, ...], parts: list[np.ndarray], axes: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """The terms, one of them without its diagonal: of k v (v . dy), what is not k v^2 dy.

    Who differentiates each output by its own input alone, as if the Jacobian were diagonal, leaves this part out.
    """
    along, over = name_axes(axes), tuple(a + 1 for a in axes)
    terms = {f"the term proportional to {name} along {along}": part for name, part in zip(names, parts, strict=False)}
    for dy in cotangents_of_outputs(r).values():
        if dy.shape != r.oracle.shape:
            continue
        for name, part in zip(names, parts, strict=False):
            share = part * dy
            whole = share.sum(axis=over, keepdims=True)
            cross = part * (1 - share / whole) if np.all(np.abs(whole) > 0) else np.zeros_like(part)
            terms[f"the term proportional to {name} along {along}, off the Jacobian's diagonal,"] = cross
    return terms


def _fit_rows(basis: list[np.ndarray], target: np.ndarray, over: tuple[int, ...]) -> list[np.ndarray] | None:
    """The numbers per row that make `target` of the basis by least squares; None where the basis is dependent."""
    rest = [a for a in range(target.ndim) if a not in over]
    order = (*rest, *over)
    shape = [target.shape[a] for a in rest] + [1] * len(over)

    def rows(v: np.ndarray) -> np.ndarray:
        return np.transpose(v, order).reshape(int(np.prod([target.shape[a] for a in rest])), -1)

    columns = np.stack([rows(v) for v in basis], axis=2)
    size = np.linalg.norm(columns, axis=1)
    if np.any(size == 0):
        return None
    q, upper = np.linalg.qr(columns / size[:, None])
    if np.any(np.abs(np.diagonal(upper, axis1=1, axis2=2)) < INDEPENDENT):
        return None
    c = np.linalg.solve(upper, np.swapaxes(q.conj(), 1, 2) @ rows(target)[..., None])[..., 0] / size
    return [np.transpose(c[:, k].reshape(shape), np.argsort(order)) for k in range(len(basis))]


def recognisable(r: Residual, axes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Arrays of the argument's shape that terms are often multiples of, by what they are called."""
    values = {n: v for n, v in (dict(r.args) | dict(r.y)).items() if is_floating(v)}
    wide = {n: w for n, v in values.items() if (w := like(v, r.shape)) is not None}
    cotangents = {n: w for n, v in cotangents_of_outputs(r).items() if (w := like(v, r.shape)) is not None}
    products = {f"{d} * {n}": c * w for d, c in cotangents.items() for n, w in wide.items()}
    exponentials = {f"exp({n})": np.exp(w) for n, w in wide.items() if not np.iscomplexobj(w)}
    pool = wide | cotangents | products | exponentials
    return {n: v for n, v in pool.items() if _varies(v, axes) and np.isfinite(v).all()}


def _varies(v: np.ndarray, axes: tuple[int, ...]) -> bool:
    over = tuple(a + 1 for a in axes)
    return bool(np.all(np.std(v, axis=over) > 1e-6 * np.max(np.abs(v), axis=over)))


def _of_known_arrays(r: Residual) -> Diagnosis | None:
    """The residual is a constant times dy, another cotangent, or the argument itself."""
    known = {n: w for n, v in cotangents_of_outputs(r).items() if (w := like(v, r.shape)) is not None}
    known |= {f"the cotangent of {n}": v for n, v in r.others.items() if v.shape == r.oracle.shape}
    if r.where in r.args and is_floating(r.args[r.where]):
        known |= {f"{r.where} itself": r.args[r.where]}
    for name, v in known.items():
        c = _multiples(r, [v]) if _is_usable(r, v) else None
        if c is not None:
            text = f"{name} is missing" if c[0] == -1 else f"the reference plus {show(c[0])} x {name}"
            return Diagnosis("missing_term", text)
    return None
