"""`phrase-loc vocab SOURCE ... --output vocab.txt`: the words of texts, counted in one streaming pass."""

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import same_file
from phrase_loc.text.parsing import parse

if TYPE_CHECKING:
    from phrase_loc.text.phrases import PhraseEncoder

_UNKNOWN = 60  # unknown words that the report lists


def vocab_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    default = " (default: %(default)s)"
    sources = "captions (.txt, .txt.gz), tables (.csv, .tsv, .jsonl, .parquet), folders or shards (.tar); "
    sources += "{000..009} and * are expanded"
    share = "share of the size that two-word units may take, 0 for none"
    association = "normalised PMI from which two neighbours are a unit"
    fields = "columns or JSON fields that hold text (default: the usual names)"
    coverage = "report how much of these phrases is covered"
    add("sources", nargs="+", metavar="SOURCE", help=sources)
    add("--output", type=Path, required=True, metavar="vocab.txt", help="file to write")
    add("--size", type=int, default=18_000, metavar="V", help="words and pairs kept at most" + default)
    add("--min-count", type=int, default=5, metavar="N", help="a unit must be seen so often" + default)
    add("--pair-share", type=float, default=0.25, metavar="X", help=share + default)
    add("--min-association", type=float, default=0.35, metavar="X", help=association + default)
    add("--fields", nargs="+", metavar="NAME", help=fields)
    add("--coverage", metavar="phrases.txt", help=coverage)
    add("--quiet", action="store_true", help="no progress bar")


def run_vocab(args: argparse.Namespace) -> int:
    """Build, write, report."""
    from tqdm import tqdm

    from phrase_loc.pairs.sources import TEXT_FIELDS, stream_texts
    from phrase_loc.skipped import Skipped
    from phrase_loc.text.phrases import PhraseEncoder
    from phrase_loc.text.vocabulary import UnitCounter

    _check(args)
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
    return 0


def _check(args: argparse.Namespace) -> None:
    """Everything that can be wrong is told before the long pass."""
    from phrase_loc.pairs.paths import expand

    if args.size < 1 or args.min_count < 1:
        raise ConfigError(f"--size and --min-count must be 1 or more, got {args.size} and {args.min_count}")
    if not 0 <= args.pair_share <= 1:
        raise ConfigError(f"--pair-share must lie in 0..1, got {args.pair_share}")
    if not args.output.parent.is_dir():
        raise DataError(f"the folder {args.output.parent} of --output does not exist; make it first")
    if args.output.exists() and any(same_file(args.output, path) for path in expand(args.sources)):
        raise ConfigError(f"--output {args.output} is one of the sources; name another file")
    if args.coverage and not Path(args.coverage).is_file():
        raise DataError(f"the phrases {args.coverage} do not exist; check --coverage")


def coverage(encoder: "PhraseEncoder", phrases: Iterable[str]) -> list[str]:
    """How many of the phrases the encoder knows, each mention counted once, and the most frequent unknown words."""
    count: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for phrase in phrases:
        found, encoded = parse(phrase), encoder.encode(phrase)
        known = [word.known for word in encoded.words]
        count["phrases"] += 1
        count["with a known word"] += any(known)
        count["with a known head"] += encoded.head_known
        count["with all words known"] += bool(known) and all(known)
        count["without a content word"] += not found
        unknown.update(word.text for word in encoded.words if not word.known and found)
    whole = count.pop("phrases", 0)
    kinds = ("with a known word", "with a known head", "with all words known", "without a content word")
    lines = [f"{kind} {count[kind]} ({100 * count[kind] / max(1, whole):.1f} %)" for kind in kinds]
    missing = ", ".join(f"{word} {n}" for word, n in unknown.most_common(_UNKNOWN))
    return [f"phrases {whole}", *lines, *([f"unknown: {missing}"] if missing else [])]
