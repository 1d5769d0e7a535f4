"""The site as a reader meets it: it builds without a warning, leads nowhere that is not, and shows no TeX."""

import ast
import html
import importlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest

import bpref
from bpref.corpus import DERIVATIONS
from bpref.rules import KINDS, RULES
from docs import (
    architecture,
    derivation,
    errata,
    error_plot,
    errors,
    flow,
    mistakes,
    mutants,
    pages,
    rule_page,
    search,
    snippets,
    weight,
)
from tests.docs.conftest import SHOWN
from tests.docs.test_formula import DERIVATIONS as DOCSTRINGS

pytestmark = pytest.mark.usefixtures("with_katex")


class Page(HTMLParser):
    """A page's visible words, what it links to, and the names that can be linked to."""

    def __init__(self, file: Path):
        super().__init__()
        self.words, self.links, self.anchors, self.inside = [], [], {""}, []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.add(found.get("id") or "")
        self.links += [found[name] for name in ("href", "src") if found.get(name)]
        if tag in ("pre", "code", "script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.words.append(data)


def test_no_link_leads_nowhere(site):
    found = {file.resolve(): Page(file) for file in site.rglob("*.html")}
    not_built = {(site / rule_page.path(name)).resolve() for name in RULES}
    for file, page in found.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"\w+:", target):
                assert target.startswith("https://"), (file, link)
                continue
            path = (file.parent / target.partition("?")[0]).resolve() if target else file
            if path.with_suffix("") in not_built and path not in found:
                continue
            assert path.exists(), (file, link)
            if path in found:
                assert anchor in found[path].anchors, (file, link)


def test_no_tex_is_left_and_nothing_comes_from_elsewhere(site):
    for file in site.rglob("*.html"):
        words = " ".join(Page(file).words)
        assert not re.search(r"\\[A-Za-z(\[]|\$|\^\{|_\{|<<|>>", words), file
        assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', file.read_text()), file


def test_a_page_weighs_little(site, monkeypatch):
    assert weight.too_heavy(site) == []
    home = site / "index.html"
    monkeypatch.setattr(weight, "MOST_BYTES", weight.of_page(home, site) - 1)
    assert f"index.html weighs {weight.MOST_BYTES + 1:,} bytes" in weight.too_heavy(site)


@pytest.fixture(scope="module")
def terms(site):
    """The pages of each word that can be searched for."""
    index = json.loads((site / "searchindex.js").read_text().removeprefix("Search.setIndex(").removesuffix(")"))
    pages_of = {word: of if isinstance(of, list) else [of] for word, of in index["terms"].items()}
    return {word: {index["docnames"][n] for n in of} for word, of in pages_of.items()}


def test_search_finds_a_rule_by_another_name(terms):
    assert "rules/activation/glu" in terms["swiglu"]


def test_search_knows_words_alone(terms):
    """Of two cells of a table two; of formulas, pictures, code, and what is alike on all pages of rules, none."""
    of_rule = {word for word, pages in terms.items() if "rules/norm/rms_norm" in pages}
    assert "librari" in of_rule
    assert [word for word in of_rule if re.search(r"^argumentslib|^default_rng$|\ddef|nk$", word)] == ["γnk"]


def test_a_word_of_most_pages_is_not_asked_for():
    blocks = "# NAME", "The gradients of linear", f"{search.UNSEARCHED}## Run it", "run it", "## Source", "see NAME"
    many = ["\n\n".join(blocks).replace("NAME", f"name{n}") for n in range(search.COMMON + 1)]
    assert {"gradients", "gradient", "linear"} <= set(search.common(many, []))
    assert {"run", "name1"}.isdisjoint(search.common(many, []))
    assert "linear" not in search.common(many, ["linear"])
    assert search.common(many[1:], []) == []


def test_a_page_has_all_that_is_known_of_its_rule(site):
    page = html.unescape((site / "rules/norm/rms_norm.html").read_text())
    for heading in HEADINGS:
        assert f"<h2>{heading}" in page, heading
    assert re.search(r'<tr data-names="dx"><td class="left"><span class="math" role="img" aria-label="dx_nk">', page)
    assert re.search(r'<span class="line" data-names="dx">', page)
    for wrong in DERIVATIONS["rms_norm"].wrong:
        assert html.unescape(wrong.source) in page
    assert "TPU v5e" in page
    assert "H100" in page
    assert "arXiv1910.07467" in page


HEADINGS = (
    "Forward", "Differential and adjoint", "In code", "What is cached", "Numerical care", "Shapes", "Time and memory",
    "How it goes wrong", "How it is called", "Run it", "Equal elsewhere", "Check yours", "Tried on", "Source",
)  # fmt: skip


def test_every_rule_and_every_mistake_is_in_the_book():
    catalogue = pages.catalogue(KINDS)
    in_toctree = {name for page in catalogue.values() for name in page.split("```{toctree}")[1].split()}
    assert in_toctree >= set(RULES)
    for kind, names in KINDS.items():
        assert f"\n{kind}/index\n" in catalogue["rules/index"]
        assert all(f'href="{kind}/{name}.html"' in catalogue["rules/index"] for name in names)
    assert {f.name for name in RULES for f in mistakes.of_rule(name)} == {f.name for f in DERIVATIONS.values()}


def test_errors_at_growing_inputs_are_those_that_are_measured(site):
    assert set(errors.of_all()) == {name for name, rule in RULES.items() if errors.can_be_scaled(rule.cases[0])}
    for name in ("softplus", "rms_norm"):
        for pair, shown in zip(errors.measured(RULES[name]), errors.of_all()[name], strict=True):
            assert (pair is None) == (shown is None)
            np.testing.assert_allclose(pair or 0, shown or 0, rtol=1, atol=2)  # another machine rounds otherwise
    hand, autodiff = errors.of_all()["huber"][0]
    assert hand < 2 < 1e5 < autodiff, "where x is small, autodiff of the naive form cancels"
    page = (site / "rules/norm/rms_norm.html").read_text()
    assert page.count('<circle class="hand"') == sum(pair is not None for pair in errors.of_all()["rms_norm"]) >= 5


def test_mutants_of_every_rule_were_found_wrong(site):
    assert set(mutants.of_all()) | WITHOUT_MUTANTS == set(RULES)
    kinds = Counter(one.kind for found in mutants.of_all().values() for one in found)
    assert kinds["ok"] == 0
    assert kinds["cannot tell"] <= 0.02 * kinds.total(), kinds
    assert all(one == shown for one, shown in zip(mutants.asked(RULES["tanh"]), mutants.of_all()["tanh"], strict=True))
    page = html.unescape((site / "rules/norm/rms_norm.html").read_text())
    for one in mutants.of_all()["rms_norm"]:
        assert one.change in page
        assert one.said in page


WITHOUT_MUTANTS = {
    "fan_in", "flatten", "gaussian_noise", "identity", "reduce_sum", "stochastic_rounding", "straight_through",
}  # fmt: skip
"""Rules whose backward has no step that could be another."""


def test_a_mutants_line_is_shown_as_long_as_it_stands_in_the_code(monkeypatch):
    for line, shown in (
        ("return dy * jnp.cos(x)  # no more", False),
        ("return Layer(init, forward, backward, who)", True),
    ):
        one = mutants.Asked("negate mul[0]", line, "x", "sign", "-1 x the reference")
        monkeypatch.setattr(mutants, "of_all", lambda one=one: {"tanh": [one]})
        assert (html.escape(line, quote=False) in mutants.to_page("tanh")) == shown


NOT_AS_PRECISE = {
    "reversible_block": (1e-6, 1e-4),  # x comes back as a difference of what is far larger than it
    "linear_attention": (1e2,),  # neither has a digit left
    "triangle_attention": (1e-6,),  # nor here: all keys are alike, and what differs from their mean cancels
}
"""Where the error by hand is more than four times autodiff's, and why."""


def test_no_rule_loses_digits_that_autodiff_keeps_at_any_size_of_its_input():
    found = {
        name: tuple(size for size, pair in zip(errors.SIZES, pairs, strict=True) if pair and pair[0] > 4 * pair[1] + 4)
        for name, pairs in errors.of_all().items()
    }
    assert {name: sizes for name, sizes in found.items() if sizes} == NOT_AS_PRECISE


def test_where_a_function_has_no_value_its_curve_has_a_gap():
    plot = error_plot.to_svg("f", [(1.0, 2.0), None, (0.0, 1e9), *[None] * 4])
    assert plot.count("<polyline") == 4
    ys = [float(y) for y in re.findall(r'<circle class="hand" cx="[^"]*" cy="([^"]*)"', plot)]
    assert ys[1] == error_plot.TOP + error_plot.TALL > ys[0]


def test_the_picture_of_the_house_has_every_folder_above_what_it_imports():
    reads = {name: part.reads for name, part in architecture.parts().items()}
    level = {name: i for i, floor in enumerate(architecture.floors(reads)) for name in floor}
    folders = {file.parent.name for file in architecture.HOUSE.glob("*/__init__.py")}
    assert set(level) == folders - {"checks"} | {architecture.GROUND}
    assert all(level[other] < level[name] for name, read in reads.items() for other in read)
    assert all(part.about for part in architecture.parts().values())


def test_what_is_imported_on_the_way_to_something_else_has_no_line_of_its_own():
    reads = {"cli": frozenset({"train", "ground"}), "train": frozenset({"ground"}), "ground": frozenset()}
    assert sorted(architecture.needed(reads)) == [("cli", "train"), ("train", "ground")]
    with pytest.raises(ValueError, match="these import each other: cli, train"):
        architecture.floors({"cli": frozenset({"train"}), "train": frozenset({"cli"})})


def test_errata_are_what_was_seen_in_public_and_each_is_found_wrong(site):
    shown = {f.name for name in SHOWN for f in mistakes.of_rule(name) if errata.published(f)}
    assert shown == {file.stem for file in (site / "errata").glob("*.html")} - {"index"} != set()
    index = html.unescape((site / "errata/index.html").read_text())
    for name in shown:
        page = html.unescape((site / f"errata/{name}.html").read_text())
        assert f'href="{name}.html"' in index
        for i, wrong in enumerate(DERIVATIONS[name].wrong):
            is_shown = wrong in errata.published(DERIVATIONS[name])
            assert (f"Seen: {wrong.source}." in re.sub("<[^>]+>", "", page)) == is_shown
            if is_shown:
                found = [line.split()[0] for line in errata.verdict(name, i).splitlines() if "WRONG" in line]
                assert set(found) == set(wrong.where)


def test_every_erratum_is_shown_as_it_is_written():
    for name, function in DERIVATIONS.items():
        for wrong in function.wrong:
            written = errata.as_written(name, wrong)
            ast.parse(f"f = {written}")
        assert "def forward(" in errata.right(importlib.import_module(f"bpref.corpus.{name}")), name


def test_every_public_name_is_in_the_reference(site):
    text = "".join(file.read_text() for file in (site / "api").glob("*.html"))
    anchors = {name: f'id="bpref-{name.lower().replace("_", "-")}"' for name in bpref.__all__ if name not in RULES}
    assert [name for name, anchor in anchors.items() if anchor not in text] == []


AS_WRITTEN = {
    "attention_block": 1, "average_pool": 1, "causal_convolution": 2, "convolution": 1, "determinant": 1,
    "generalized_delta_rule": 2, "lstm": 1, "qr": 1, "top_k_router": 1,
}  # fmt: skip
"""How many lines of which derivations no formula could be made of."""


def test_what_no_formula_could_be_made_of_is_shown_as_written():
    kept = Counter()
    for name, text in DOCSTRINGS.items():
        for kind, lines in derivation.parts(text):
            for line in derivation.whole(lines) if kind == "block" else ():
                kept[name] += derivation.cells(line)[0].kind == "plain"
    assert +kept == AS_WRITTEN


def test_the_picture_names_what_goes_in_and_out_by_its_axes():
    x, y = "x (N, d)", "y (N, d / 2)"
    assert flow.of_rule(RULES["glu"]) == flow.Flow([x], [y], [x], [f"d{y}"], [f"d{x}"])
    assert flow.of_rule(RULES["linear"]).returned == ["dW (m, d)", "db (m,)", "dx (N, d)"]
    assert flow.of_rule(RULES["pad"]).y == ["y (N, ..., ..., C + 1)"]
    assert flow.of_rule(RULES["embedding"]).returned == ["dW (V, d)"]


def test_every_rule_has_a_page():
    assert [
        name for name in RULES if not rule_page.page(RULES[name]).startswith("---\nhide-toc: true\n---\n\n# " + name)
    ] == []


@pytest.mark.parametrize("name", ["glu", "linear", "embedding", "flex_attention"])
def test_a_program_of_a_page_runs(name, capsys):
    assert list(snippets.failing([name])) == []


def test_a_layer_is_written_as_the_call_that_makes_one_like_it():
    for layer in (bpref.linear(3), bpref.lstm(4, reverse=True), bpref.gru(2), bpref.rnn(3), bpref.tanh()):
        again = eval(snippets.written_value(layer))
        x = np.ones((1, 2, 3), np.float32)
        assert snippets.written_value(again) == snippets.written_value(layer)
        assert jax.eval_shape(again.init, jax.random.key(0), x) == jax.eval_shape(layer.init, jax.random.key(0), x)


def test_a_program_that_raises_is_named(monkeypatch):
    monkeypatch.setattr(snippets, "use", lambda rule: "raise ValueError(1)")
    assert list(snippets.failing(["glu"])) == ["the program of glu raises ValueError(1)"]


def test_the_check_of_a_page_finds_the_rule_right(capsys):
    program = snippets.check(RULES["square"])
    exec(program.replace("rule = ", f"{snippets.stands_in(RULES['square'])}\nrule = "), {})
    assert re.search(r"^  x.*  ok ", capsys.readouterr().out, re.MULTILINE)
