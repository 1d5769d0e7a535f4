"""Where a wrong cotangent is wrong, drawn: a square for each place, the darker the larger its relative error."""

import math

from bpref.verify.report import Pattern

SIDE, LEFT, TOP = 14, 120, 30
DECADES = 6
"""An error of 1e-6 and one of 1 are the ends of the scale; what is right is empty."""


def heat_map(p: Pattern) -> str:
    """The pattern as a picture inside of the page; axes that part right from wrong are marked."""
    rows, columns = len(p.errors), len(p.errors[0])
    bold = " Along an axis in bold some indices are right throughout." if {*p.uneven} & {*p.drawn} else ""
    squares = (_square(i, j, error) for i, row in enumerate(p.errors) for j, error in enumerate(row))
    *of_rows, of_columns = (_axis(p, axis) for axis in p.drawn)
    labels = [f'<text x="{LEFT}" y="{TOP - 10}"{_class(p, p.drawn[-1])}>{of_columns} &#8594;</text>']
    labels += [
        f'<text x="{LEFT - 10}" y="{TOP + 11}" text-anchor="end"{_class(p, p.drawn[0])}>{name} &#8595;</text>'
        for name in of_rows
    ]
    frame = f'<rect x="{LEFT}" y="{TOP}" width="{columns * SIDE}" height="{rows * SIDE}" class="frame"/>'
    size = f'width="{LEFT + columns * SIDE + 200}" height="{TOP + rows * SIDE + 2}"'
    said = f"relative errors along {' and '.join(_axis(p, axis) for axis in p.drawn)}"
    others = [_axis(p, axis) for axis in range(len(p.shape)) if axis not in p.drawn]
    worst = f"; of {' and '.join(others)}, and of all samples, the worst" if others else "; of all samples the worst"
    legend = (
        f"Empty: right. The darkest: a relative error of 1 or more, the lightest of {10.0**-DECADES:.0e}{worst}.{bold}"
    )
    return (
        f'<svg class="heat" role="img" aria-label="{said}" {size}>{"".join(labels)}{"".join(squares)}{frame}</svg>'
        f'<p class="fine">{legend}</p>'
    )


def _axis(p: Pattern, axis: int) -> str:
    return f"axis {axis} (of {p.shape[axis]})"


def _class(p: Pattern, axis: int) -> str:
    return ' class="uneven"' if axis in p.uneven else ""


def _square(i: int, j: int, error: float) -> str:
    if not error:
        return ""
    dark = min(1.0, max(0.15, 1 + math.log10(error) / DECADES))
    at = f'x="{LEFT + j * SIDE}" y="{TOP + i * SIDE}" width="{SIDE}" height="{SIDE}"'
    return f'<rect {at} class="error" fill-opacity="{dark:.2f}"><title>{error:.1e}</title></rect>'
