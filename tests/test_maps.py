import pytest
import torch

from phrase_loc.maps import min_max, peak, resize, resized_peak, smooth


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def test_resize_keeps_leading_dimensions_and_a_constant():
    out = resize(torch.full((2, 3, 4, 5), 0.7), (9, 8))
    torch.testing.assert_close(out, torch.full((2, 3, 9, 8), 0.7))


def test_bicubic_overshoot_is_clamped():
    spike = torch.zeros(5, 5)
    spike[2, 2] = 1
    assert resize(spike, (40, 40)).min() == 0


def test_maps_on_the_same_grid_are_copied_and_clamped():
    maps = noise(2, 4, 5) - 0.5
    out = resize(maps, (4, 5))
    assert torch.equal(out, maps.clamp(min=0))
    kept = maps.clone()
    out.add_(1)
    assert torch.equal(maps, kept)


def test_smooth_equals_the_sum_over_all_cells():
    maps, sigma = noise(4, 6), 0.2
    out = smooth(maps, sigma)
    for i in range(4):
        for j in range(6):
            total = weight = 0.0
            for a in range(i - 4, i + 5):
                for b in range(j - 6, j + 7):
                    d = ((i - a) / 4 / sigma) ** 2 + ((j - b) / 6 / sigma) ** 2
                    w = torch.exp(torch.tensor(-0.5 * d)).item()
                    inside = 0 <= a < 4 and 0 <= b < 6  # nothing is won outside of the image
                    total, weight = total + (w * maps[a, b].item() if inside else 0), weight + w
            assert out[i, j].item() == pytest.approx(total / weight, rel=1e-5)


def test_smooth_keeps_a_constant_but_at_the_border_and_means_the_same_on_every_grid():
    flat = smooth(torch.full((2, 60, 90), 3.0), 0.05)
    torch.testing.assert_close(flat[:, 15:-15, 20:-20], torch.full((2, 30, 50), 3.0))
    assert flat[:, 0].max() < 1.8
    coarse = smooth(resize(noise(4, 4), (32, 32)), 0.1)
    fine = smooth(resize(noise(4, 4), (64, 64)), 0.1)
    inner = slice(1, -1)  # at the corners, where the map falls steeply, `resize` itself is coarse
    torch.testing.assert_close(
        resize(coarse, (64, 64))[inner, inner], fine[inner, inner], atol=0.01, rtol=0.02
    )


def test_smooth_by_nothing():
    maps = noise(3, 3)
    assert smooth(maps, 0) is maps


@pytest.mark.parametrize("flat", [0.0, 1.0, 0.1, 1e-30, 1e30])
def test_min_max_works_map_by_map_and_a_flat_map_becomes_zero(flat: float):
    maps = torch.stack([noise(4, 4), torch.full((4, 4), flat)])
    stretched = min_max(maps)
    assert (stretched[0].min(), stretched[0].max()) == (0, 1)
    assert not stretched[1].any()


def test_peak_is_the_first_maximum_in_row_order():
    grid = torch.zeros(3, 4)
    grid[1, 3] = grid[2, 0] = 5
    assert peak(grid).tolist() == [3, 1]
    assert peak(torch.zeros(2, 3, 4)).tolist() == [[0, 0], [0, 0]]
    assert peak(torch.stack([grid, grid.flip(0)])).tolist() == [[3, 1], [0, 0]]


def test_peak_against_a_loop():
    grid = (noise(6, 7) * 4).floor()
    best = max((grid[y, x].item(), -y, -x) for y in range(6) for x in range(7))
    assert peak(grid).tolist() == [-best[2], -best[1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(37, 50), (64, 64), (375, 500), (20, 7)])
def test_the_peak_of_a_resized_map_is_that_of_the_map_made_whole(size, dtype):
    generator = torch.Generator().manual_seed(3)
    rough = torch.rand(9, 64, 64, generator=generator, dtype=dtype)
    soft = smooth(rough**4, 0.04)
    zeros, flat, mirrored = torch.zeros_like(rough[:1]), torch.ones_like(rough[:1]), soft + soft.flip(-1)
    two = zeros.clone()
    two[0, 10, 20] = two[0, 40, 50] = 1.0
    negative = -rough[:1]
    every = torch.cat([rough, soft, zeros, flat, mirrored, two, negative, 1e-30 * soft, 1e6 * soft])
    whole = peak(resize(every, size))
    assert torch.equal(resized_peak(every, size), whole)


def test_the_peaks_of_no_maps_are_none():
    assert resized_peak(torch.zeros(0, 8, 8), (20, 30)).shape == (0, 2)
