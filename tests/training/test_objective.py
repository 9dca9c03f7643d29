"""The objective: chunks and samples of words, memory, labels to tables, hard negatives."""

import pytest
import torch

from phrase_loc.distributed import World
from phrase_loc.models.build import create
from phrase_loc.models.model import TextToRegion
from phrase_loc.pairs.dataset import Batch, Ragged, Sample, collate
from phrase_loc.text.vocabulary import Vocabulary, WordLabels
from phrase_loc.training.config import PhaseConfig
from phrase_loc.training.objective import Objective, sampled_words, table


def small_model(words: int, size: int = 8) -> TextToRegion:
    torch.manual_seed(0)
    vocabulary = Vocabulary(tuple(f"w{i}" for i in range(words)), (1,) * words)
    vectors = torch.randn(words, size)
    return create(vocabulary, vectors, backbone="tiny", weights=None, image_size=32, hidden=16, tuned=True)


def batch(words: int, count: int = 4) -> Batch:
    draw = torch.Generator().manual_seed(1)
    samples = []
    for n in range(count):
        ids = sorted(set(torch.randint(words, (6,), generator=draw).tolist()))
        image = torch.randint(256, (3, 32, 32), generator=draw, dtype=torch.uint8)
        labels = WordLabels(tuple(ids), (1.0,) * len(ids))
        samples.append(Sample(image, labels, float(n != 3)))
    return collate(samples)


def value_and_gradients(words: int, phase: dict, **settings: object) -> tuple[float, list[torch.Tensor]]:
    model = small_model(words).double()
    objective = Objective(model, PhaseConfig(**phase), World(), **settings)
    loss = objective(batch(words), 7)
    gradients = torch.autograd.grad(loss, [*list(model.head.parameters())[:3], model.words.vectors])
    return loss.item(), list(gradients)


def test_chunks_of_words_and_recomputed_stages_change_nothing():
    whole, exact = value_and_gradients(1500, {})
    chunked, again = value_and_gradients(1500, {}, memory_mb=1, recompute=True)
    assert chunked == pytest.approx(whole, rel=1e-12)
    for a, b in zip(exact, again, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_the_table_of_labels():
    labels = Ragged(torch.tensor([0, 0, 2]), torch.tensor([5, 9, 5]), torch.tensor([1.0, 0.5, 0.25]))
    expected = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.25]])
    assert torch.equal(table(labels, torch.tensor([3, 5]), 3, torch.float32), expected)


def test_sampled_words_hold_those_said_and_stand_for_all():
    words, stands = sampled_words([3, 50, 99], 100, 20, seed=1)
    assert len(words) == len(set(words.tolist())) == 20
    assert words.tolist() == sorted(words.tolist())
    assert {3, 50, 99} <= set(words.tolist())
    assert stands.sum().item() == pytest.approx(100)
    assert stands[words == 50].item() == 1
    assert torch.equal(sampled_words([3, 50, 99], 100, 20, seed=1)[0], words)
    assert sampled_words(list(range(30)), 100, 20, seed=1)[0].tolist() == list(range(30))


def test_sampled_words_estimate_the_whole_sum():
    whole, _ = value_and_gradients(600, {"losses": {"sigmoid": 1.0}})
    model = small_model(600).double()
    objective = Objective(model, PhaseConfig(words=100), World())
    found = [objective(batch(600), seed).item() for seed in range(40)]
    assert sum(found) / 40 == pytest.approx(whole, rel=0.01)
    assert max(found) != min(found)


class Peak(torch.overrides.TorchFunctionMode):
    """The largest tensor that any torch function returns, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("settings", [{}, {"words": 50_000}])
def test_a_hundred_thousand_words_stay_below_the_memory_limit(settings: dict):
    model = small_model(100_000)
    objective = Objective(model, PhaseConfig(**settings), World(), memory_mb=4)
    with Peak() as peak:
        loss = objective(batch(100_000), 3)
    loss.backward()
    limit = 4 * 2**20 / 4  # floats in 4 MB; all scores at locations would be 4 * 100,000 * 16
    assert 100_000 < peak.elements <= max(limit, model.words.vectors.numel())
    assert model.words.vectors.grad is not None
    assert model.words.vectors.grad.isfinite().all()
