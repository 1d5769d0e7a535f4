"""The book: a static site made of the derivations' docstrings, the figures, the corpus and the public names.

python -m docs.build
"""
