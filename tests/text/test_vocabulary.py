import math
import random
import tracemalloc
from collections.abc import Iterable

import pytest

from phrase_loc.errors import DataError
from phrase_loc.text.vocabulary import UnitCounter, Vocabulary, association

CAPTIONS = [
    "Two dogs eat hot dogs.",
    "A dog eats a hot dog in the street",
    "Hot dogs, dogs and a street",
    "A man and his dog; a man on a street",
    "The men eat",
]


def build_vocabulary(captions: Iterable[str], **options) -> Vocabulary:
    counter = UnitCounter()
    counter.update(captions)
    return counter.vocabulary(**options)


def small(**options) -> Vocabulary:
    return build_vocabulary(CAPTIONS, **{"min_count": 2, "pair_share": 0.5} | options)


def test_dictionary_forms_are_counted_and_ordered():
    vocabulary = small()
    counts = dict(zip(vocabulary.words, vocabulary.counts))
    assert counts["dog"] == 7  # every 'dog' and 'dogs', also within 'hot dog'
    assert counts["man"] == 3
    assert counts["street"] == 3
    assert "the" not in counts
    assert counts.get("two", 0) == 0  # seen once only
    assert "two" in small(min_count=1)
    assert list(vocabulary.counts) == sorted(vocabulary.counts, reverse=True)


def test_pairs_become_units_and_win_over_single_words():
    filler = [
        f"a brown {noun} on a {noun}" for noun in ("dog", "cat", "hat", "car", "tree", "bench", "street")
    ]
    captions = ["a hot dog with mustard", "a hot dog"] * 5 + ["dogs run"] + filler * 9
    vocabulary = build_vocabulary(captions, min_count=5, pair_share=0.5)
    assert "hot dog" in vocabulary
    assert "brown dog" not in vocabulary
    assert vocabulary.units("Hot dogs for a dog") == ["hot dog", "dog"]
    assert vocabulary.units("hot, dogs") == ["hot", "dog"]
    assert "hot dog" not in build_vocabulary(captions, pair_share=0.0)


def test_size_and_minimum_count_limit():
    assert len(small(size=2)) == 2
    assert small(size=1).words == ("dog",)
    assert "man" not in small(min_count=4)


def test_nothing_frequent_enough_is_an_error():
    with pytest.raises(DataError, match="seen 50 times in 5 texts"):
        small(min_count=50)
    with pytest.raises(DataError):
        build_vocabulary([])


def test_merged_counters_equal_one_pass():
    whole, left, right = UnitCounter(), UnitCounter(), UnitCounter()
    whole.update(CAPTIONS)
    left.update(CAPTIONS[:2])
    right.update(CAPTIONS[2:])
    left.merge(right)
    assert left.words == whole.words
    assert left.pairs == whole.pairs
    assert left.vocabulary(min_count=1) == whole.vocabulary(min_count=1)


def test_association_is_the_normalised_pmi_of_nltk():
    """The oracle is NLTK's own measure (base 2, so the normaliser is too)."""
    from nltk.collocations import BigramAssocMeasures

    for together, first, second, total in [(5, 7, 9, 1000), (3, 3, 3, 50), (1, 40, 60, 5000)]:
        pmi = BigramAssocMeasures.pmi(together, (first, second), total)
        expected = pmi / -math.log2(together / total)
        assert association(together, first, second, total) == pytest.approx(expected)
    assert association(3, 3, 3, 50) == pytest.approx(1.0)
    assert association(0, 3, 3, 50) == -1


def test_tables_stay_within_their_limit_and_keep_the_frequent():
    rng = random.Random(0)
    counter = UnitCounter(table_limit=500)
    for _ in range(300):
        counter.update([f"dog cat x{rng.randrange(10**9)} y{rng.randrange(10**9)} z{rng.randrange(10**9)}"])
        assert len(counter.words) <= 500
        assert len(counter.pairs) <= 500
    assert counter.words["dog"] == 300
    assert counter.pairs["dog", "cat"] == 300


def test_a_hundred_thousand_words_in_bounded_memory():
    def captions():
        for i in range(0, 101_000, 100):
            yield "dog " + ", ".join(f"word{j}x" for j in range(i, i + 100))

    tracemalloc.start()
    vocabulary = build_vocabulary(captions(), size=100_000, min_count=1, pair_share=0.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(vocabulary) == 100_000
    assert vocabulary.words[0] == "dog"
    assert peak < 150e6


def test_file_round_trip(tmp_path):
    vocabulary = small()
    path = tmp_path / "vocab.txt"
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert [p.name for p in tmp_path.iterdir()] == ["vocab.txt"]
    path.write_text("dog\nhot dog\n", encoding="utf-8")
    assert Vocabulary.load(path) == Vocabulary(("dog", "hot dog"), (0, 0))


@pytest.mark.parametrize(
    "content",
    ["", "dog\tmany\n", "dog\t3\ndog\t2\n", "\t3\n", "dog\t²\n", f"dog\t{'9' * 9999}\n", b"\xff\xfe\x00"],
)
def test_bad_files_are_told(tmp_path, content):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError):
        Vocabulary.load(path)


def test_missing_file_and_folder_are_told(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Vocabulary.load(tmp_path / "none.txt")
    with pytest.raises(DataError, match="cannot be written"):
        small().save(tmp_path / "none" / "vocab.txt")


def test_hyphens_are_read_whole_joined_or_in_parts():
    vocabulary = Vocabulary(("t-shirt", "skateboarder", "cow"), (9, 9, 9))
    assert vocabulary.units("a tee shirt") == ["t-shirt"]
    assert vocabulary.units("skate-boarders") == ["skateboarder"]
    assert vocabulary.units("a cow-like thing") == ["cow"]
    assert vocabulary.rows(vocabulary.units("cow unknown t-shirts")) == [2, 0]
