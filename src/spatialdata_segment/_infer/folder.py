"""All images of a folder: one that fails loses no other, and what is done is not done again."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import yaml

from spatialdata_segment._images import SUFFIXES
from spatialdata_segment._infer.outputs import check_place
from spatialdata_segment._infer.run import Job, infer, is_done, n_cells, planned
from spatialdata_segment._request import SHARD_SIZE
from spatialdata_segment.engine.events import of_image
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.errors import ImagesError, MissingError, SegmentationError, SegmentationWarning
from spatialdata_segment.formats._folders import CONFIGS, entries_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from spatialdata_segment._infer.settings import Settings
    from spatialdata_segment._preview import RunPlan


def infer_folder(
    folder: Path,
    output: Path,
    settings: Settings,
    *,
    overwrite: bool = False,
    resume: bool = True,
    progress: bool = True,
    tell: Callable[[str, str, int | str], None],
) -> None:
    """Segment every image of a folder into a folder of its name, and list them in ``configs.yml``.

    Parameters
    ----------
    folder
        Images; other files are left alone.
    output
        Gets a folder an image.
    settings
        Of all of them.
    overwrite
        Do again what is done, and replace what was done with other settings.
    resume, progress
        As for `infer`.
    tell
        Called for every image with a line, its name, and the number of cells or the error.

    Raises
    ------
    MissingError
        If there is no such folder, or no image in it.
    ImagesError
        If some failed; the others are done.
    """
    check_place(output)
    images = find_images(folder, settings.image_type)
    planes(output / CONFIGS)  # a spoilt one is told before anything runs
    failed: dict[str, Exception] = {}
    done: list[str] = []
    several = _at_once(settings, len(images))
    large: list[tuple[int, str, Path]] = []

    def one(number: int, name: str, path: Path, *, beside: bool) -> None:
        at = f"[{number}/{len(images)}] {name}"
        try:
            with of_image(name):
                job = Job.of(path, settings)
                if not overwrite and is_done(job, output / name):
                    tell(f"{at}: done before", name, n_cells(output / name))
                elif beside and not _is_small(job):
                    large.append((number, name, path))
                    return
                else:
                    run = _on_one_thread(job) if beside else job
                    shown = progress and not beside
                    n = infer(run, output / name, overwrite=overwrite, resume=resume, progress=shown)
                    tell(f"{at}: {n:,} cells", name, n)
            done.append(name)
        except (SegmentationError, OSError) as error:
            failed[name] = error
            tell(f"{at}: failed: {error}", name, str(error))

    every = [(number, name, path) for number, (name, path) in enumerate(images.items(), 1)]
    if several > 1:
        _side_by_side(partial(one, beside=True), every, several)
    for image in sorted(large) if several > 1 else every:
        one(*image, beside=False)
    if done:
        write_planes(output / CONFIGS, done, images)
    _raise_failed({name: failed[name] for name in images if name in failed}, len(images))


def plan_folder(
    folder: Path, output: Path, settings: Settings, *, overwrite: bool, tell: Callable[[str, RunPlan | None], None]
) -> None:
    """Say of every image of a folder what it would take, or that it is done; checked as `infer_folder` would."""
    check_place(output)
    images = find_images(folder, settings.image_type)
    planes(output / CONFIGS)
    failed: dict[str, Exception] = {}
    for name, path in images.items():
        try:
            job = Job.of(path, settings)
            is_there = not overwrite and is_done(job, output / name)
            tell(name, None if is_there else planned(job, output / name, overwrite=overwrite))
        except (SegmentationError, OSError) as error:
            failed[name] = error
    _raise_failed(failed, len(images))


def _at_once(settings: Settings, n_images: int) -> int:
    """Return how many small images are at work at once: as many as there are shards in flight."""
    n_jobs = settings.options.get("n_jobs")
    executor = Executor(None if isinstance(n_jobs, Mapping) else n_jobs)
    return 1 if isinstance(n_jobs, Mapping) or executor.client is not None else min(n_images, executor.n_jobs)


def _side_by_side(one: Callable[..., None], images: Iterable[tuple[int, str, Path]], several: int) -> None:
    """Work on images in threads; an interrupt lets those at work finish."""
    with warnings.catch_warnings(), ThreadPoolExecutor(several) as drivers:  # what drivers set in turn is put back here
        futures = [drivers.submit(one, *image) for image in images]
        try:
            for future in futures:
                future.result()
        except BaseException:
            drivers.shutdown(wait=False, cancel_futures=True)
            raise


def _is_small(job: Job) -> bool:
    """Tell whether an image is one shard, which keeps one thread busy."""
    shard: int = job.settings.options.get("shard_size") or SHARD_SIZE[2]
    return bool(job.image[0].size <= shard)


def _on_one_thread(job: Job) -> Job:
    return replace(job, settings=replace(job.settings, options=job.settings.options | {"n_jobs": 1}))


def _raise_failed(failed: dict[str, Exception], total: int) -> None:
    """Raise where some images failed: the error of the only one, or one that tells of all."""
    if failed and total == 1:
        raise next(iter(failed.values()))
    if failed:
        told = "; ".join(f"{name}: {type(error).__name__}: {error}" for name, error in failed.items())
        raise ImagesError(
            f"{len(failed)} of {total} images failed: {told}. The others are done; call again for those that failed",
            failed,
        )


def find_images(folder: Path, image_type: str | None = None) -> dict[str, Path]:
    """Return the images of a folder by their names, in the order of the numbers in these.

    The name is that of the file without its suffix, or with it where that would be the name of another, or of
    ``configs.yml``: no two images have the same, and their results lie in folders of their own.

    Raises
    ------
    MissingError
        If there is none.
    """
    if not folder.is_dir():
        raise MissingError(f"there is no folder {folder}: for one image, --image-path")
    kind = "image" if image_type == "cv2" else image_type
    ends = [e for k, ends in SUFFIXES.items() if kind in (None, k) for e in ends]
    found = [p for p in folder.iterdir() if not p.name.startswith(".") and p.suffix.lower() in ends]
    found = [p for p in found if p.is_dir() == (p.suffix.lower() in SUFFIXES["zarr"])]
    if not found:
        raise MissingError(f"no image in {folder}: expected names that end in {', '.join(ends)}")
    paths = sorted(found, key=lambda p: _natural(p.name))
    short = [image_name(p) for p in paths]
    taken = {p.name for p in paths} | {CONFIGS} | {name for name, n in Counter(short).items() if n > 1}
    return {p.name if name in taken else name: p for p, name in zip(paths, short, strict=True)}


def image_name(path: Path) -> str:
    """Return the name of a file without ``.tif``, ``.ome.tif`` and the like."""
    return path.stem.removesuffix(".ome")


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which plane2 comes before plane10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def planes(path: Path) -> dict[str, int | None]:
    """Return the planes that a ``configs.yml`` gives to images.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    if not path.exists():
        return {}
    return dict(entries_of(path))


def write_planes(path: Path, names: Iterable[str], images: Collection[str]) -> None:
    """List images in ``configs.yml``; those of before stay, and the plane that each had.

    What is no image of the folder any more goes with its result; as long as that is there it stays, with a warning.

    Parameters
    ----------
    path
        Of the file.
    names
        What is done.
    images
        All that the folder has.
    """
    known = {name: z for name, z in planes(path).items() if name in images or (path.parent / name).is_dir()}
    if stale := [name for name in known if name not in images]:
        warnings.warn(
            f"{path} lists {', '.join(stale)}, of which the folder has no image now, but there are results: `stitch` "
            "takes them too; remove their folders and call again, if they are not wanted",
            SegmentationWarning,
            stacklevel=3,
        )
    every = sorted({*known, *names}, key=_natural)
    content = {"stitch": [{"image_name": name, "z_index": known.get(name)} for name in every]}
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    temporary.replace(path)
