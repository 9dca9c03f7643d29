"""`phrase-loc vocab SOURCE ... --output vocab.txt`: the words of texts, counted in one streaming pass."""

import argparse
import os
from collections import Counter
from collections.abc import Iterable
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from phrase_loc.cli import COUNT, DEFAULT, PROBABILITY, number, parsed
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import refuse_foreign, same_file
from phrase_loc.text.parsing import parse

if TYPE_CHECKING:
    from phrase_loc.text.phrases import PhraseEncoder

_UNKNOWN = 60  # unknown words that the report lists


def run_vocab(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Build, write, report."""
    add = parser.add_argument
    text = "captions (.txt, .txt.gz), tables (.csv, .tsv, .jsonl, .parquet), folders or shards (.tar); "
    text += "{000..009} and * are expanded"
    add("sources", nargs="+", metavar="SOURCE", help=text)
    add("--output", type=Path, required=True, metavar="vocab.txt", help="file to write")
    add("--size", type=COUNT, default=18_000, metavar="V", help=f"words and pairs kept at most {DEFAULT}")
    add("--min-count", type=COUNT, default=5, metavar="N", help=f"a unit must be seen so often {DEFAULT}")
    text = f"share of the size that two-word units may take, 0 for none {DEFAULT}"
    add("--pair-share", type=PROBABILITY, default=0.25, metavar="X", help=text)
    text = f"normalised PMI from which two neighbours are a unit {DEFAULT}"
    association = number(-1, 1, "a normalised PMI from -1 to 1")
    add("--min-association", type=association, default=0.35, metavar="X", help=text)
    text = "columns or JSON fields that hold text (default: the usual names)"
    add("--fields", nargs="+", metavar="NAME", help=text)
    add("--coverage", metavar="phrases.txt", help="report how much of these phrases is covered")
    add("--quiet", action="store_true", help="no progress bar")
    args = parsed(parser, given)
    from tqdm import tqdm

    from phrase_loc.pairs.paths import expand
    from phrase_loc.pairs.sources import TEXT_FIELDS, stream_texts
    from phrase_loc.skipped import Skipped
    from phrase_loc.text.phrases import PhraseEncoder
    from phrase_loc.text.vocabulary import UnitCounter

    # everything that can be wrong is told before the long pass
    if not args.output.parent.is_dir():
        raise DataError(f"the folder {args.output.parent} of --output does not exist; make it first")
    if os.path.exists(args.output) and any(same_file(args.output, path) for path in expand(args.sources)):
        raise ConfigError(f"--output {args.output} is one of the sources; name another file")
    refuse_foreign(args.output, r"\A[^\t\n]+\t\d+\s", "vocabulary", "name another --output")
    if args.coverage and not Path(args.coverage).is_file():
        raise DataError(f"the phrases {args.coverage} do not exist; check --coverage")
    counter, skipped = UnitCounter(), Skipped()
    texts = stream_texts(args.sources, args.fields or TEXT_FIELDS, skipped)
    counter.update(tqdm(texts, unit=" texts", disable=args.quiet or None, mininterval=0.5))
    vocabulary = counter.vocabulary(args.size, args.min_count, args.min_association, args.pair_share)
    vocabulary.save(args.output)
    pairs = sum(" " in word for word in vocabulary.words)
    print(
        f"{args.output}: {len(vocabulary)} units ({pairs} pairs) of {counter.texts} texts, "
        f"rarest seen {vocabulary.counts[-1]} times"
    )
    if skipped.seen:
        print(f"skipped: {skipped.summary()}")
    if args.coverage:
        print("\n".join(coverage(PhraseEncoder(vocabulary), stream_texts(args.coverage))))


def coverage(encoder: "PhraseEncoder", phrases: Iterable[str]) -> list[str]:
    """How many of the phrases the encoder knows, each mention counted once, and the most frequent unknown words."""
    kinds = ("with a known word", "with a known head", "with all words known", "without a content word")
    asked, count, unknown = list(phrases), Counter[str](), Counter[str]()
    for phrase in asked:
        found, encoded = parse(phrase), encoder.encode(phrase)
        known = [word.known for word in encoded.words]
        holds = (any(known), encoded.head_known, bool(known) and all(known), not found)
        count.update(compress(kinds, holds))
        unknown.update(word.text for word in encoded.words if not word.known and found)
    lines = [f"{kind} {count[kind]} ({100 * count[kind] / max(1, len(asked)):.1f} %)" for kind in kinds]
    missing = ", ".join(f"{word} {n}" for word, n in unknown.most_common(_UNKNOWN))
    return [f"phrases {len(asked)}", *lines, *([f"unknown: {missing}"] if missing else [])]
