"""The public polygon verbs: any array, any chunks, the same polygons; and clear errors."""

import dask
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import xarray as xr
from shapely.geometry import LineString, Point, Polygon, box

from spatialdata_segment import _polygons, labels_to_polygons, polygons_to_labels
from spatialdata_segment.errors import InputError


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Return 60 x 70 px of touching squares, a large ring, noise, and one id beyond uint32."""
    rng = np.random.default_rng(0)
    image = np.kron(rng.permutation(42).reshape(6, 7), np.ones((10, 10), np.int64))
    image[20:50, 15:60] = 2**40
    image[30:40, 25:50] = rng.integers(0, 3, (10, 25))
    image.flags.writeable = False
    return image


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_polygons, "_BLOCK", 16)


def assert_same(frame: gpd.GeoDataFrame, expected: gpd.GeoDataFrame) -> None:
    pd.testing.assert_frame_equal(pd.DataFrame(frame.to_wkb()), pd.DataFrame(expected.to_wkb()))


@pytest.fixture
def whole(labels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> gpd.GeoDataFrame:
    monkeypatch.setattr(_polygons, "_BLOCK", 1000)
    frame = labels_to_polygons(labels, progress=False)
    monkeypatch.setattr(_polygons, "_BLOCK", 16)
    return frame


@pytest.mark.parametrize("chunks", [7, (60, 3), (1, 70), -1, ((20, 40), (33, 37)), (64, 64)])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_any_chunks_give_the_same(
    labels: np.ndarray, whole: gpd.GeoDataFrame, chunks: object, n_jobs: int | None
) -> None:
    frame = labels_to_polygons(da.from_array(labels, chunks=chunks), n_jobs=n_jobs, progress=False)
    assert_same(frame, whole)
    assert frame.index.name == "cell_id"
    assert frame.index.tolist() == np.unique(labels)[1:].tolist()
    assert frame.is_valid.all()
    assert frame.area.to_dict() == dict(zip(*np.unique(labels[labels > 0], return_counts=True), strict=True))


def test_numpy_and_xarray_give_the_same(labels: np.ndarray, whole: gpd.GeoDataFrame) -> None:
    assert_same(labels_to_polygons(labels), whole)
    assert_same(labels_to_polygons(xr.DataArray(labels, dims=("y", "x")), progress=False), whole)
    turned = xr.DataArray(da.from_array(labels.T, chunks=20), dims=("x", "y"))
    assert_same(labels_to_polygons(turned, progress=False), whole)


def test_a_chunk_is_computed_once(labels: np.ndarray) -> None:
    seen = []

    def load(block: np.ndarray) -> np.ndarray:
        seen.append(block.shape)
        return block

    lazy = da.from_array(labels, chunks=(60, 35)).map_blocks(load, dtype=labels.dtype, meta=labels[:0, :0])
    labels_to_polygons(lazy, progress=False, n_jobs=1)
    assert seen == [(60, 35), (60, 35)]


@pytest.mark.parametrize("chunks", [(1, 10, 10), (3, 60, 70), (2, 11, 70)])
def test_planes(labels: np.ndarray, whole: gpd.GeoDataFrame, chunks: tuple[int, ...]) -> None:
    stack = np.stack([labels, np.zeros_like(labels), labels])
    frame = labels_to_polygons(da.from_array(stack, chunks=chunks), progress=False)
    assert frame.columns.tolist() == ["z_index", "cell_id", "geometry"]
    assert sorted(frame.z_index.unique()) == [0, 2]
    for z in (0, 2):
        assert_same(frame[frame.z_index == z].set_index("cell_id")[["geometry"]], whole)
    pd.testing.assert_frame_equal(frame, labels_to_polygons(stack, progress=False))


def test_no_object() -> None:
    flat = labels_to_polygons(np.zeros((20, 40), np.uint8), progress=False)
    assert (len(flat), flat.index.name, flat.index.dtype) == (0, "cell_id", np.int64)
    deep = labels_to_polygons(np.zeros((2, 20, 40), np.uint8), progress=False)
    assert (len(deep), deep.columns.tolist()) == (0, ["z_index", "cell_id", "geometry"])
    assert not polygons_to_labels(flat, (5, 6)).compute().any()
    assert not polygons_to_labels([], (5, 6), ids=[]).compute().any()
    assert polygons_to_labels([], (0, 6)).compute().shape == (0, 6)


@pytest.mark.parametrize("chunks", [2048, 13, (60, 9)])
def test_back_to_the_labels(labels: np.ndarray, whole: gpd.GeoDataFrame, chunks: object) -> None:
    back = polygons_to_labels(whole, labels.shape, chunks=chunks)
    assert back.dtype == np.uint64
    assert np.array_equal(back.compute(), labels)
    assert np.array_equal(back[23:41, 5:50].compute(), labels[23:41, 5:50])
    small = polygons_to_labels(whole.geometry, labels.shape, ids=np.arange(1, len(whole) + 1), chunks=chunks)
    assert small.dtype == np.uint32
    assert np.array_equal(small > 0, labels > 0)


def test_ids_are_the_index_where_it_holds_positive_integers() -> None:
    squares = [box(i, 0, i + 1, 1) for i in range(3)]
    assert polygons_to_labels(squares, (1, 4)).compute().tolist() == [[1, 2, 3, 0]]
    for index, expected in (([7, 5, 6], [7, 5, 6]), ([0, 1, 2], [1, 2, 3]), (list("abc"), [1, 2, 3])):
        series = gpd.GeoSeries(squares, index=index)
        assert polygons_to_labels(series, (1, 3)).compute().tolist() == [expected]
    assert polygons_to_labels(squares, (1, 3), dtype="int16").dtype == np.int16


def test_the_first_polygon_wins_in_every_block() -> None:
    overlapping = [box(2, 0, 6, 2), box(0, 0, 8, 2)]
    expected = [[2, 2, 1, 1, 1, 1, 2, 2]] * 2
    assert polygons_to_labels(overlapping, (2, 8), chunks=3).compute().tolist() == expected


def test_the_graph_holds_the_polygons_once(whole: gpd.GeoDataFrame) -> None:
    back = polygons_to_labels(whole, (60, 70), chunks=4)
    graph = dict(back.__dask_graph__())
    holders = {id(v) for v in graph.values() if "_Painter" in repr(v)}
    assert len(graph) < 1.1 * back.npartitions + 5
    assert len(holders) <= 1
    with dask.config.set(scheduler="sync"):
        assert back[:4, :4].compute().shape == (4, 4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 4)), "float64"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros(4, int), r"\(4,\)"),
        (np.zeros((1, 1, 4, 4), int), r"\(1, 1, 4, 4\)"),
        (np.full((4, 4), -3), "-3"),
        (xr.DataArray(np.zeros((2, 4, 4), int), dims=("c", "y", "x")), "'c', 'y', 'x'"),
    ],
)
def test_refuses_what_are_not_labels(bad: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        labels_to_polygons(bad, progress=False)


def test_refuses_no_threads(labels: np.ndarray) -> None:
    with pytest.raises(InputError, match="n_jobs=0"):
        labels_to_polygons(labels, n_jobs=0)


SQUARES = [box(0, 0, 1, 1), box(1, 1, 2, 2)]


@pytest.mark.parametrize(
    ("polygons", "options", "message"),
    [
        (SQUARES, {"shape": (3, 4, 4)}, r"\(3, 4, 4\)"),
        (SQUARES, {"shape": (-3, 4)}, r"\(-3, 4\)"),
        (SQUARES, {"shape": 4}, "shape=4"),
        ([box(0, 0, 1, 1), Point(1, 1)], {}, "Point at position 1"),
        ([LineString([(0, 0), (1, 1)])], {}, "LineString"),
        ([box(0, 0, 1, 1), None], {}, "None"),
        (["a"], {}, "'a'"),
        ([Polygon([(0, 0), (1, 0), (1, np.inf)])], {}, "position 0.*not finite"),
        (SQUARES, {"ids": [1, 0]}, "ids hold 0"),
        (SQUARES, {"ids": [3, 3]}, "id 3 stands 2 times"),
        (SQUARES, {"ids": [1.0, 2.0]}, "float64"),
        (SQUARES, {"ids": [1, 2, 3]}, r"\(3,\)"),
        (gpd.GeoSeries(SQUARES, index=[4, 4]), {}, "id 4 stands 2 times"),
        (SQUARES, {"ids": [1, 300], "dtype": "uint8"}, "uint8.*300"),
        (SQUARES, {"dtype": "float32"}, "float32"),
    ],
)
def test_refuses_what_cannot_be_drawn(polygons: object, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        polygons_to_labels(polygons, options.pop("shape", (4, 4)), **options)


def test_survives_the_way_to_another_process(labels: np.ndarray, whole: gpd.GeoDataFrame) -> None:
    import cloudpickle

    back = cloudpickle.loads(cloudpickle.dumps(polygons_to_labels(whole, labels.shape, chunks=30)))
    assert np.array_equal(back.compute(), labels)
    assert shapely.is_valid(whole.geometry).all()


@pytest.mark.parametrize("chunks", [2048, 13, (2, 60, 9)])
def test_planes_back_to_the_labels(labels: np.ndarray, chunks: object) -> None:
    stack = np.stack([labels, labels[::-1] * 3, np.zeros_like(labels), labels[:, ::-1]])
    frame = labels_to_polygons(stack, progress=False)
    back = polygons_to_labels(frame, stack.shape, chunks=chunks)
    assert np.array_equal(back.compute(), stack)
    assert np.array_equal(back[1:, 20:30].compute(), stack[1:, 20:30])
    shuffled = frame.sample(frac=1, random_state=0)
    assert np.array_equal(polygons_to_labels(shuffled, stack.shape, chunks=chunks).compute(), stack)
    assert np.array_equal(polygons_to_labels(frame, (2, 60, 70), chunks=chunks).compute(), stack[:2])
    with pytest.raises(InputError, match="z_index"):
        polygons_to_labels(frame[["geometry"]], stack.shape)
    frame.loc[1, "cell_id"] = frame.loc[0, "cell_id"]
    with pytest.raises(InputError, match="stands 2 times"):
        polygons_to_labels(frame, stack.shape)


def test_a_file_is_drawn_in_batches(labels: np.ndarray, whole: gpd.GeoDataFrame, tmp_path, monkeypatch) -> None:
    from spatialdata_segment.formats import _stream, write_geojson, write_parquet

    write_parquet(tmp_path / "a.parquet", whole)
    write_geojson(tmp_path / "a.geojson", whole)
    monkeypatch.setattr(_stream, "_ROWS", 5)
    for path in (tmp_path / "a.parquet", str(tmp_path / "a.geojson")):
        assert np.array_equal(polygons_to_labels(path, labels.shape, chunks=17).compute(), labels)
    numbered = polygons_to_labels(tmp_path / "a.parquet", labels.shape, ids=np.arange(1, len(whole) + 1))
    assert np.array_equal(numbered.compute(), np.searchsorted(np.unique(labels), labels))
    whole.loc[whole.index[7], "geometry"] = Point(1, 1)
    whole.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet, rows 5 to 10: .*Point at position 2"):
        polygons_to_labels(tmp_path / "b.parquet", labels.shape)
