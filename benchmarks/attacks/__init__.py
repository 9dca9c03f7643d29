"""Mutated and odd inputs, one module a kind; each has `attack(count, seed, folder) -> Tally`.

A mutation is right when the product answers it or refuses it with a PhraseLocError (at the command line: one sentence
and exit code 2; over HTTP: a 4xx), and wrong when it ends in any other exception, hangs, or is silently answered
otherwise than its content says. `benchmarks/robustness.py` runs all kinds; `tests/robustness/` runs a tenth.
"""
