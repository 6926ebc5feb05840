"""Staging: what is written is what spatialdata would write, and a kill at any step leaves old or new."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import anndata as ad
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
import zarr
from spatialdata._io.format import SpatialDataContainerFormatV01
from spatialdata.models import Image2DModel, Labels2DModel, Labels3DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale, get_transformation

from spatialdata_segment import _journal, _ngff
from spatialdata_segment._staging import Staging, recover, recover_sdata
from spatialdata_segment.errors import InputError, ScratchError

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (150, 130)
PYRAMID = ((150, 130), (75, 65), (37, 32))
CHUNKS = (64, 64)


def label_picture(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2000, shape).astype(np.uint32)


def transformations() -> dict:
    return {"global": Scale([0.5, 0.25], axes=("x", "y")), "other": Identity()}


def squares(n: int) -> gpd.GeoDataFrame:
    index = pd.Index(np.arange(1, n + 1), name="cell_id")
    return gpd.GeoDataFrame(geometry=[shapely.box(i, 0, i + 1, 1) for i in range(n)], index=index)


def a_table(n: int, region: str) -> ad.AnnData:
    obs = pd.DataFrame({"region": pd.Categorical([region] * n), "cell_id": np.arange(1, n + 1)})
    obs.index = obs.index.astype(str)
    table = ad.AnnData(np.full((n, 2), float(n), np.float32), obs=obs)
    return TableModel.parse(table, region=region, region_key="region", instance_key="cell_id")


def an_object() -> sd.SpatialData:
    image = Image2DModel.parse(
        label_picture(0, (2, *SHAPE)).astype(np.uint16),
        dims=("c", "y", "x"),
        c_coords=["DAPI", "WGA"],
        scale_factors=[2, 2],
        transformations=transformations(),
    )
    return sd.SpatialData(images={"image": image}, attrs={"note": "kept"})


def backed(path: Path, *, fmt: object = None, consolidated: bool = True) -> sd.SpatialData:
    an_object().write(path, sdata_formats=fmt, consolidate_metadata=consolidated)
    return sd.read_zarr(path)


def put_labels(staging: Staging, name: str, picture: np.ndarray, pyramid: tuple = PYRAMID) -> None:
    array = staging.labels(
        name,
        shape=picture.shape,
        dtype=picture.dtype,
        transformations=transformations(),
        pyramid=pyramid,
        chunks=CHUNKS[-1:] * picture.ndim,
    )
    for i in range(0, picture.shape[0], array.chunks[0]):
        array[i : i + array.chunks[0]] = picture[i : i + array.chunks[0]]
    staging.finish_labels(name)


def put_all(sdata: sd.SpatialData, seed: int) -> Staging:
    """Stage labels, shapes and a table that tell the seed."""
    staging = Staging(sdata).__enter__()
    put_labels(staging, "seg_labels", label_picture(seed))
    staging.shapes("seg_shapes", squares(seed), transformations())
    staging.table("seg_table", a_table(seed, "seg_labels"))
    return staging


def matrices(element: object) -> dict[str, list]:
    """All transformations, whatever the order of their axes."""
    axes = ("x", "y", "z")
    of = get_transformation(element, get_all=True)
    return {system: t.to_affine_matrix(axes, axes).tolist() for system, t in of.items()}


def level(element: object, k: int) -> np.ndarray:
    return np.asarray(element[f"scale{k}"]["image"].data)


def seed_of(sdata: sd.SpatialData) -> tuple:
    """Which of the seeds each element is of, whole; None where it is not there."""

    def labels() -> int | None:
        if "seg_labels" not in sdata.labels:
            return None
        (seed,) = (s for s in (3, 5) if np.array_equal(level(sdata["seg_labels"], 0), label_picture(s)))
        expected = label_picture(seed)[1::2, 1::2]
        assert np.array_equal(level(sdata["seg_labels"], 1), expected)
        assert np.array_equal(level(sdata["seg_labels"], 2), expected[1::2, 1::2][:37, :32])
        return seed

    shapes = len(sdata["seg_shapes"]) if "seg_shapes" in sdata.shapes else None
    table = None
    if "seg_table" in sdata.tables:
        table = sdata["seg_table"].n_obs
        assert np.array_equal(sdata["seg_table"].X, np.full((table, 2), float(table)))
    return labels(), shapes, table


def digest(store: Path) -> dict[str, str]:
    return {
        p.relative_to(store).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(store.rglob("*"))
        if p.is_file()
    }


def normal(metadata: str) -> object:
    return json.loads(metadata)


@pytest.mark.parametrize("fmt", [None, SpatialDataContainerFormatV01()], ids=["v3", "v2"])
@pytest.mark.parametrize("kind", ["single", "multi", "3d"])
def test_labels_are_laid_out_as_spatialdata_lays_them_out(tmp_path: Path, fmt: object, kind: str) -> None:
    shape = (4, *SHAPE) if kind == "3d" else (192, 124)  # even levels: odd ones of theirs go by dask's chunks
    picture = label_picture(1, shape)
    factors = {"single": None, "multi": [2, 2], "3d": [2]}[kind]
    model, dims = (Labels3DModel, ("z", "y", "x")) if kind == "3d" else (Labels2DModel, ("y", "x"))
    lazy = da.from_array(picture, chunks=CHUNKS[-1:] * len(shape))
    theirs = model.parse(lazy, dims=dims, scale_factors=factors, transformations=transformations())
    reference = backed(tmp_path / "a.zarr", fmt=fmt)
    reference["seg"] = theirs
    reference.write_element("seg", sdata_formats=fmt)

    ours = backed(tmp_path / "b.zarr", fmt=fmt)
    pyramid = (shape,) if factors is None else tuple(n["image"].shape for n in theirs.children.values())
    with Staging(ours) as staging:
        put_labels(staging, "seg", picture, pyramid)
        staging.commit()
    again = sd.read_zarr(tmp_path / "b.zarr")
    for k in range(len(pyramid)):
        a = theirs if factors is None else theirs[f"scale{k}"]["image"]
        for sdata in (ours, again):
            b = sdata["seg"] if factors is None else sdata["seg"][f"scale{k}"]["image"]
            assert b.dtype == picture.dtype
            assert np.array_equal(np.asarray(b.data), np.asarray(a.data))
            assert matrices(b) == matrices(a)
            assert all(np.array_equal(b.coords[d], a.coords[d]) for d in dims)
    names = {n for n in digest(tmp_path / "a.zarr") if n.startswith("labels/")}
    assert names == {n for n in digest(tmp_path / "b.zarr") if n.startswith("labels/")}
    for name in names:
        if Path(name).name in {"zarr.json", ".zattrs", ".zarray", ".zgroup"}:
            a, b = ((tmp_path / s / name).read_text() for s in ("a.zarr", "b.zarr"))
            if kind == "single" or "chunk" not in a:
                assert a == b
            else:  # dask halves the chunks from level to level, we keep them
                drop = ("chunks", "chunk_grid")
                assert all(json.loads(a)[key] == value for key, value in json.loads(b).items() if key not in drop)


def test_all_kinds_backed(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    sdata = backed(store)
    image = sdata["image"]
    put_all(sdata, 3).commit()
    assert sdata["image"] is image
    assert sdata.attrs == {"note": "kept"}
    assert sorted(os.listdir(store)) == ["images", "labels", "shapes", "tables", "zarr.json"]
    assert sdata.has_consolidated_metadata()
    assert seed_of(sdata) == seed_of(sd.read_zarr(store)) == (3, 3, 3)
    assert sdata.is_self_contained()
    assert set(sdata.elements_paths_on_disk()) == set(sdata.elements_paths_in_memory())
    group = zarr.open_group(store, mode="r")
    assert "labels/seg_labels/s0" in dict(group.members(max_depth=None))
    sdata["more"] = ShapesModel.parse(squares(2))
    sdata.write_element("more")
    assert "more" in sd.read_zarr(store).shapes


@pytest.mark.parametrize("fmt", [None, SpatialDataContainerFormatV01()], ids=["v3", "v2"])
@pytest.mark.parametrize("consolidated", [True, False])
def test_replacing_leaves_what_a_first_run_leaves(tmp_path: Path, fmt: object, consolidated: bool) -> None:
    first = backed(tmp_path / "a.zarr", fmt=fmt, consolidated=consolidated)
    put_all(first, 5).commit()
    second = backed(tmp_path / "b.zarr", fmt=fmt, consolidated=consolidated)
    put_all(second, 3).commit()
    put_all(second, 5).commit()
    assert seed_of(second) == seed_of(sd.read_zarr(tmp_path / "b.zarr")) == (5, 5, 5)
    assert digest(tmp_path / "a.zarr") == digest(tmp_path / "b.zarr")
    assert second.has_consolidated_metadata() == consolidated


def test_in_memory(tmp_path: Path) -> None:
    sdata = an_object()
    with Staging(sdata, tmp_path) as staging:
        put_labels(staging, "seg_labels", label_picture(3))
        put_labels(staging, "flat", label_picture(4), (SHAPE,))
        staging.shapes("seg_shapes", squares(3), transformations())
        staging.table("seg_table", a_table(3, "seg_labels"))
        staging.commit()
    assert os.listdir(tmp_path) == []
    assert sdata.path is None
    assert seed_of(sdata) == (3, 3, 3)
    assert np.array_equal(sdata["flat"].data.compute(), label_picture(4))
    assert matrices(sdata["flat"]) == matrices(sdata["seg_shapes"])
    assert matrices(sdata["seg_labels"]) == matrices(sdata["flat"])
    sdata.write(tmp_path / "later.zarr")
    assert seed_of(sd.read_zarr(tmp_path / "later.zarr")) == (3, 3, 3)


def test_remove(tmp_path: Path) -> None:
    sdata = backed(tmp_path / "s.zarr")
    put_all(sdata, 3).commit()
    with Staging(sdata) as staging:
        staging.remove(["seg_shapes", "seg_labels", "nowhere"])
        staging.table("seg_table", a_table(5, "image"))
        staging.commit()
    assert seed_of(sdata) == seed_of(sd.read_zarr(tmp_path / "s.zarr")) == (None, None, 5)
    assert zarr.open_group(tmp_path / "s.zarr/labels").attrs["ome"]["labels"] == []
    memory = an_object()
    memory["seg_shapes"] = ShapesModel.parse(squares(2))
    with Staging(memory) as staging:
        staging.remove(["seg_shapes"])
        staging.commit()
    assert "seg_shapes" not in memory


@pytest.mark.parametrize("on_disk", [True, False])
def test_an_exception_leaves_everything_as_it_was(tmp_path: Path, on_disk: bool) -> None:
    sdata = backed(tmp_path / "s.zarr") if on_disk else an_object()
    before = digest(tmp_path)

    def run() -> None:
        with Staging(sdata, tmp_path) as staging:
            put_labels(staging, "seg_labels", label_picture(3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert digest(tmp_path) == before
    assert list(sdata.labels) == []
    assert not (tmp_path / "s.zarr" / _journal.DOT).exists()


def test_transformations_are_copied(tmp_path: Path) -> None:
    live = {"global": Scale([0.5, 0.5], axes=("x", "y"))}
    sdata = an_object()
    with Staging(sdata) as staging:
        staging.shapes("s", squares(2), live)
        live["global"].scale[:] = 7
        staging.commit()
    assert get_transformation(sdata["s"]).scale.tolist() == [0.5, 0.5]


class Kill(BaseException):
    """What a SIGKILL is to a process, as an exception."""


def count_steps(monkeypatch: pytest.MonkeyPatch, kill_at: int | None) -> list[str]:
    seen: list[str] = []

    def step(what: str) -> None:
        seen.append(what)
        if len(seen) - 1 == kill_at:
            raise Kill(what)

    monkeypatch.setattr(_journal, "step", step)
    return seen


@pytest.mark.parametrize(("replacing", "how"), [(True, "at once"), (True, "two renames"), (False, "at once")])
def test_killed_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replacing: bool, how: str) -> None:
    if how == "two renames":
        monkeypatch.setattr(_journal.sys, "platform", "elsewhere")
    sdata = backed(tmp_path / "start.zarr")
    if replacing:
        put_all(sdata, 3).commit()
    shutil.copytree(tmp_path / "start.zarr", tmp_path / "undisturbed.zarr")
    steps = count_steps(monkeypatch, None)
    put_all(sd.read_zarr(tmp_path / "undisturbed.zarr"), 5).commit()
    expected = digest(tmp_path / "undisturbed.zarr")
    old = 3 if replacing else None
    victim = put_all(sdata, 5)
    shutil.copytree(tmp_path / "start.zarr", tmp_path / "staged.zarr")
    victim._discard()
    assert len(steps) > 15
    for k in range(1, len(steps)):
        store = tmp_path / f"{k}.zarr"
        shutil.copytree(tmp_path / "staged.zarr", store)
        count_steps(monkeypatch, k - 1)  # without "staged"
        with pytest.raises(Kill):
            victim._exchange(store, tuple(victim._put), ())
        count_steps(monkeypatch, None)
        between = sd.read_zarr(store)
        allowed = {old, 5} if how == "at once" else {old, 5, None}
        assert set(seed_of(between)) <= allowed, steps[k]
        rolled = recover_sdata(between)
        journaled = k >= steps.index("journal")
        assert rolled == (journaled and steps[k] != "no journal"), steps[k]
        assert seed_of(between) == ((5, 5, 5) if journaled else (old,) * 3), steps[k]
        assert digest(store) == (expected if journaled else digest(tmp_path / "start.zarr")), steps[k]
        shutil.rmtree(store)


def test_recovery_itself_may_be_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdata = backed(tmp_path / "start.zarr")
    put_all(sdata, 3).commit()
    victim = put_all(sdata, 5)
    steps = count_steps(monkeypatch, None)
    with monkeypatch.context() as m:
        m.setattr(_journal, "roll_forward", lambda *_: (_ for _ in ()).throw(Kill()))
        with pytest.raises(Kill):
            victim.commit()
    victim._lock.abandon()
    assert steps[-1] == "journal"
    k, done = 0, ""
    while done != "no journal":  # each attempt gets one step further, and is killed
        seen = count_steps(monkeypatch, k)
        with pytest.raises(Kill):
            recover(tmp_path / "start.zarr")
        assert set(seed_of(sd.read_zarr(tmp_path / "start.zarr"))) <= {3, 5}
        k, done = k + 1, seen[-1]
    assert k > 8
    assert not recover(tmp_path / "start.zarr")
    assert seed_of(sd.read_zarr(tmp_path / "start.zarr")) == (5, 5, 5)
    assert not (tmp_path / "start.zarr" / _journal.DOT).exists()
    assert not recover(tmp_path / "start.zarr")


def test_a_real_kill(tmp_path: Path) -> None:
    """The process dies by SIGKILL, its locks with it; another finishes."""
    store = tmp_path / "s.zarr"
    put_all(backed(store), 3).commit()
    program = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import spatialdata as sd
        from test_staging import _journal, put_all
        def step(what):
            if what == "after seg_shapes":
                os.kill(os.getpid(), signal.SIGKILL)
        _journal.step = step
        put_all(sd.read_zarr({str(store)!r}), 5).commit()
    """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -9
    sdata = sd.read_zarr(store)
    assert seed_of(sdata) == (5, 5, 3)
    with Staging(sdata) as staging:
        assert seed_of(sdata) == (5, 5, 5)
        assert [p.name for p in (store / _journal.DOT).glob("stage-*")] == [staging._stage.name]
    assert not (store / _journal.DOT).exists()


def test_two_runs_at_once(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    one, two = backed(store), sd.read_zarr(store)
    with Staging(one) as a, Staging(two) as b:
        put_labels(a, "a", label_picture(3))
        assert not recover(store)
        put_labels(b, "b", label_picture(5))
        a.commit()
        b.commit()
    assert set(sd.read_zarr(store).labels) == {"a", "b"}
    assert zarr.open_group(store / "labels").attrs["ome"]["labels"] == ["a", "b"]


def test_a_commit_finishes_the_journal_of_another_run_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "s.zarr"
    victim = put_all(backed(store), 5)
    with Staging(sd.read_zarr(store)) as survivor:
        put_labels(survivor, "mine", label_picture(3))
        with monkeypatch.context() as m:
            steps = count_steps(m, 3)
            with pytest.raises(Kill):
                victim.commit()
            assert "journal" in steps
        survivor.commit()
    assert seed_of(sd.read_zarr(store)) == (5, 5, 5)
    assert "mine" in sd.read_zarr(store).labels


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("where", ["shapes", "labels", "body", "sync"])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool, where: str) -> None:
    sdata = backed(tmp_path / "s.zarr") if on_disk else an_object()
    before = digest(tmp_path)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_: object, **__: object) -> None:
        raise full

    def run() -> None:
        with Staging(sdata, tmp_path) as staging:
            if where == "labels":
                monkeypatch.setattr(_ngff, "coarsen", fail)
            if where == "shapes":
                monkeypatch.setattr(sd.SpatialData, "write_element", fail)
            if where == "sync":
                monkeypatch.setattr(_journal if on_disk else da, "sync_tree" if on_disk else "from_array", fail)
            if where == "shapes":
                staging.shapes("seg_shapes", squares(3), transformations())
            put_labels(staging, "seg_labels", label_picture(3))
            if where == "body":
                raise RuntimeError("a shard failed") from full
            staging.commit()

    with pytest.raises(ScratchError, match=r"No space left.*GiB.*Nothing has been changed"):
        run()
    assert digest(tmp_path) == before
    assert list(sdata.labels) == []


def test_the_disk_fails_during_the_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "s.zarr"
    put_all(backed(store), 3).commit()

    def step(what: str) -> None:
        if what == "after seg_labels":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    staging = put_all(sd.read_zarr(store), 5)
    with monkeypatch.context() as m:
        m.setattr(_journal, "step", step)
        with pytest.raises(ScratchError, match="the next run on this store puts them in place") as e:
            staging.commit()
        staging.__exit__(e.type, e.value, e.tb)
    assert seed_of(sd.read_zarr(store)) == (5, 3, 3)
    with Staging(sd.read_zarr(store)):
        assert seed_of(sd.read_zarr(store)) == (5, 5, 5)
    assert not (store / _journal.DOT).exists()


def test_misuse(tmp_path: Path) -> None:
    sdata = an_object()
    args = {"shape": SHAPE, "transformations": transformations(), "pyramid": PYRAMID, "chunks": CHUNKS}
    with Staging(sdata) as staging:
        with pytest.raises(InputError, match="unsigned"):
            staging.labels("a", dtype="int32", **args)
        with pytest.raises(InputError, match="no row"):
            staging.shapes("s", squares(3).iloc[:0], transformations())
        staging.labels("a", dtype="uint32", **args)
        with pytest.raises(InputError, match="finish_labels"):
            staging.commit()
        with pytest.raises(InputError, match="not being staged"):
            staging.finish_labels("b")


def test_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdata = backed(tmp_path / "s.zarr")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ScratchError, match="cannot be written to"):
        Staging(sdata).__enter__()


@pytest.mark.parametrize(
    "sizes", [((10, 7), (5, 3)), ((100, 90), (9, 17)), ((5, 5), (5, 2)), ((4, 30, 31), (4, 15, 15))]
)
def test_coarsen_takes_the_pixel_under_the_centre(sizes: tuple) -> None:
    fine_shape, coarse_shape = sizes
    picture = label_picture(1, fine_shape).astype(np.uint64) << np.uint64(40)  # no float holds them
    fine = zarr.create_array({}, data=picture, chunks=(4, 7, 6)[-len(fine_shape) :])
    coarse = zarr.create_array({}, shape=coarse_shape, dtype=np.uint64, chunks=(3, 4, 5)[-len(fine_shape) :])
    _ngff.coarsen(fine, coarse)
    index = [np.floor((np.arange(n) + 0.5) * m / n).astype(int) for m, n in zip(fine_shape, coarse_shape, strict=True)]
    assert np.array_equal(coarse[:], picture[np.ix_(*index)])
