"""`phrase-loc vocab SOURCE ... --output vocab.txt`: the words of texts, counted in one streaming pass."""

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import is_there
from phrase_loc.text.parsing import Role, parse
from phrase_loc.text.phrases import PhraseEncoder

if TYPE_CHECKING:
    from phrase_loc.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Coverage:
    """Counts over phrases, each mention once.

    Attributes:
        phrases: how many there were.
        answerable: those with a known word, head or not.
        headed: those whose head noun (one of them, if there are several) is known.
        complete: those all of whose content words are known, and that have one.
        wordless: those without any content word ('it', 'another').
        unknown: words no table holds, with the number of phrases they stand in.
    """

    phrases: int
    answerable: int
    headed: int
    complete: int
    wordless: int
    unknown: Counter[str]

    def report(self, rows: int = 60) -> str:
        """The figures and the most frequent unknown words as text for a terminal."""
        lines = [
            f"phrases {self.phrases}",
            f"with a known word {_share(self.answerable, self.phrases)}",
            f"with a known head {_share(self.headed, self.phrases)}",
            f"with all words known {_share(self.complete, self.phrases)}",
            f"without a content word {_share(self.wordless, self.phrases)}",
        ]
        missing = [f"{word} {count}" for word, count in self.unknown.most_common(rows)]
        return "\n".join(lines + ([f"unknown: {', '.join(missing)}"] if missing else []))


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / max(1, whole):.1f} %)"


def cover(encoder: PhraseEncoder, phrases: Iterable[str]) -> Coverage:
    """Ask the encoder for every phrase and count."""
    total = answerable = headed = complete = wordless = 0
    unknown: Counter[str] = Counter()
    for phrase in phrases:
        total += 1
        found = parse(phrase)
        words = encoder.encode(phrase).words
        known = [word.known for word in words]
        answerable += any(known)
        complete += bool(known) and all(known)
        wordless += not found
        headed += any(encoder.knows(token.text) for token in found if token.role is Role.HEAD)
        unknown.update(word.text for word in words if not word.known and found)
    return Coverage(total, answerable, headed, complete, wordless, unknown)


def vocab_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="captions (.txt, .txt.gz), tables (.csv, .tsv, .jsonl, .parquet), folders or shards (.tar); "
        "{000..009} and * are expanded",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="vocab.txt", help="file to write")
    parser.add_argument(
        "--size",
        type=int,
        default=18_000,
        metavar="V",
        help="words and pairs kept at most (default: %(default)s)",
    )
    parser.add_argument(
        "--min-count",
        type=int,
        default=5,
        metavar="N",
        help="a unit must be seen so often (default: %(default)s)",
    )
    parser.add_argument(
        "--pair-share",
        type=float,
        default=0.25,
        metavar="X",
        help="share of the size that two-word units may take, 0 for none (default: %(default)s)",
    )
    parser.add_argument(
        "--min-association",
        type=float,
        default=0.35,
        metavar="X",
        help="normalised PMI from which two neighbours are a unit (default: %(default)s)",
    )
    parser.add_argument(
        "--fields",
        nargs="+",
        metavar="NAME",
        help="columns or JSON fields that hold text (default: the usual names)",
    )
    parser.add_argument(
        "--coverage", metavar="phrases.txt", help="report how much of these phrases is covered"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run_vocab(args: argparse.Namespace) -> int:
    """Build, write, report."""
    from phrase_loc.pairs.sources import TEXT_FIELDS, stream_texts
    from phrase_loc.skipped import Skipped
    from phrase_loc.text.vocabulary import UnitCounter

    _check(args)
    counter, skipped = UnitCounter(), Skipped()
    texts = stream_texts(args.sources, args.fields or TEXT_FIELDS, skipped)
    counter.update(_shown(texts, args.quiet))
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
        print(_coverage(args.coverage, vocabulary))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Everything that can be wrong is told before the long pass."""
    if args.size < 1 or args.min_count < 1:
        raise ConfigError(f"--size and --min-count must be 1 or more, got {args.size} and {args.min_count}")
    if not 0 <= args.pair_share <= 1:
        raise ConfigError(f"--pair-share must lie in 0..1, got {args.pair_share}")
    if not args.output.parent.is_dir():
        raise DataError(f"the folder {args.output.parent} of --output does not exist; make it first")
    from phrase_loc.pairs.paths import expand

    if args.output.exists() and any(
        os.path.samefile(args.output, path) for path in expand(args.sources) if is_there(path)
    ):
        raise ConfigError(f"--output {args.output} is one of the sources; name another file")
    if args.coverage and not Path(args.coverage).is_file():
        raise DataError(f"the phrases {args.coverage} do not exist; check --coverage")


def _shown(texts: Iterable[str], quiet: bool) -> Iterator[str]:
    from tqdm import tqdm

    yield from tqdm(texts, unit=" texts", disable=True if quiet else None, mininterval=0.5)


def _coverage(path: str, vocabulary: "Vocabulary") -> str:
    from phrase_loc.pairs.sources import stream_texts
    from phrase_loc.text.phrases import PhraseEncoder

    return cover(PhraseEncoder(vocabulary), stream_texts(path)).report()
