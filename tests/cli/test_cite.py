"""`bpref cite`: BibTeX that names a rule's sources and bpref."""

import re

import pytest

from bpref.cli.app import run
from bpref.cli.bibtex import entries, papers
from bpref.rules import RULES


def test_a_rule_of_several_sources(capsys):
    assert run(["cite", "LSTM"]) == 0
    assert capsys.readouterr().out == (
        "@misc{Hochreiter1997,\n"
        "  title  = {Long short-term memory},\n"
        "  author = {Hochreiter and Schmidhuber},\n"
        "  year   = {1997},\n"
        "}\n\n"
        "@misc{Gers2000,\n"
        "  title  = {Recurrent nets that time and count},\n"
        "  author = {Gers and Schmidhuber},\n"
        "  year   = {2000},\n"
        "  note   = {peepholes},\n"
        "}\n\n"
        "@misc{arXiv1402.1128,\n"
        "  title         = {Long short-term memory based recurrent neural network architectures for large vocabulary "
        "speech recognition},\n"
        "  author        = {Sak and Senior and Beaufays},\n"
        "  year          = {2014},\n"
        "  eprint        = {1402.1128},\n"
        "  archiveprefix = {arXiv},\n"
        "  url           = {https://arxiv.org/abs/1402.1128},\n"
        "  note          = {projection},\n"
        "}\n\n"
        "@software{bpref,\n"
        "  title   = {bpref: back-propagation derived by hand, verified against automatic differentiation},\n"
        "  author  = {{The bpref developers}},\n"
        "  version = {0.1.0},\n"
        "  year    = {2026},\n"
        "  note    = {rule lstm},\n"
        "}\n"
    )


def test_a_rule_without_a_publication_cites_bpref_alone():
    assert [entry.splitlines()[0] for entry in entries(RULES["flatten"])] == ["@software{bpref,"]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "softmax_cross_entropy",
            [
                "title         = {PaLM: scaling language modeling with pathways},",
                "note          = {z-loss, section 5},",
            ],
        ),
        ("cosine_embedding", ["year          = {2020},", "author        = {Grill and others},"]),
        ("qr", ["title         = {Differentiable programming tensor networks},", "author        = {Liao and others},"]),
        ("focal", ["author        = {Lin and others},"]),
    ],
)
def test_who_and_what_is_cited(name, lines):
    text = "\n".join(entries(RULES[name]))
    assert [line for line in lines if line not in text] == []


def test_a_name_that_is_none_is_one_line(capsys):
    assert run(["cite", "lstn"]) == 2
    assert capsys.readouterr().err.startswith("bpref: unknown rule 'lstn'; the nearest ")


@pytest.mark.parametrize("name", RULES)
def test_every_arxiv_number_and_title_of_a_source_is_cited_once(name):
    found = entries(RULES[name])
    cite = RULES[name].cite
    numbers = re.findall(r"eprint += \{(.+)\}", "\n".join(found))
    assert sorted(numbers) == sorted(set(re.findall(r"arXiv:(\d{4}\.\d{4,5})", cite)))
    keys = re.findall(r"^@\w+\{([\w.]+),$", "\n".join(found), re.MULTILINE)
    assert len(keys) == len(found) == len(set(keys))
    for title in re.findall(r"(?:^|[ ,(])'(.+?)'(?=[ ,;)]|$)", cite):
        assert f"{{{title}}}" in "\n".join(found)
    for entry in found:
        assert entry.count("{") == entry.count("}")
        assert re.search(r"title +=", entry)


def test_the_table_has_every_preprint_that_is_cited_and_no_other():
    """A new one needs its line there, in order."""
    cited = {number for rule in RULES.values() for number in re.findall(r"arXiv:(\d{4}\.\d{4,5})", rule.cite)}
    assert list(papers()) == sorted(cited)
