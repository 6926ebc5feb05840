"""What becomes 0 and 1."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from spatialdata_segment import Normalization
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.statistics import quantile_or_end


def applied(image: np.ndarray, normalization: Normalization, **options: bool) -> np.ndarray:
    statistics = {
        s: float(np.quantile(image[s.channel], s.value)) for s in normalization.statistics(len(image), image.shape[1:])
    }
    shape = image.shape[1], image.shape[2]
    return normalization.apply(image, (0, 0), Box.whole(shape), shape, statistics, **options)


@pytest.fixture
def image() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 1000, (2, 40, 50)).astype(np.uint16)
    pixels.flags.writeable = False
    return pixels


def test_percentiles_become_0_and_1(image: np.ndarray) -> None:
    out = applied(image, Normalization(percentile=(2, 98)))
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.percentile(out[0], [2, 98]), [0, 1], atol=1e-6)
    assert out.max() > 1  # nothing is clipped


def test_values_that_are_given(image: np.ndarray) -> None:
    np.testing.assert_allclose(applied(image, Normalization(lowhigh=(100, 300))), (image - 100.0) / 200, atol=1e-6)
    out = applied(image, Normalization(lowhigh=((0, 10), (0, 20))))
    np.testing.assert_allclose(out[1], image[1] / 20, atol=1e-5)


def test_a_flat_channel_becomes_0() -> None:
    flat = np.full((1, 8, 8), 7, np.uint8)
    assert (applied(flat, Normalization()) == 0).all()
    assert (applied(flat, Normalization(), invert=True) == 0).all()


def test_inverted(image: np.ndarray) -> None:
    plain, inverted = applied(image, Normalization()), applied(image, Normalization(), invert=True)
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-6)


def test_by_blocks_brightens_dark_places() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, (1, 200, 400)) * np.linspace(0.1, 1, 400)
    out = applied(image, Normalization(tile_norm_blocksize=50))
    dark, bright = (np.percentile(part, 95) for part in (out[..., :50], out[..., -50:]))
    assert dark > 0.6 * bright  # they were 0.2 of it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"percentile": (99, 1)}, "the lower one first"),
        ({"percentile": (1, 101)}, "less than or equal to 100"),
        ({"lowhigh": (5, 5)}, "the lower value first"),
        ({"lowhigh": (0, 1), "percentile": (2, 98)}, "give one of them"),
        ({"lowhigh": (0, 1), "tile_norm_blocksize": 50}, "give one of them"),
        ({"tile_norm_blocksize": 3}, "at least 16"),
        ({"sharpen": 2}, "Extra inputs"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Normalization(**settings)  # type: ignore[arg-type]


def test_only_percentiles_of_the_whole_ask_for_numbers() -> None:
    assert Normalization().statistics(1, (9, 9)) == [quantile_or_end(0, 0.01), quantile_or_end(0, 0.99)]
    assert Normalization(lowhigh=(0, 1)).statistics(2, (9, 9)) == []
    assert Normalization(tile_norm_blocksize=100).statistics(2, (9, 9)) == []
