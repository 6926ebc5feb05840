"""Train the small Cellpose network of nuclei, and the size model that goes with it.

    python benchmarks/train_nuclei_small.py --data PATH --out FOLDER [--minutes 85] [--seed 0] [--threads 2]
        [--resume-size]

PATH holds ``dsb2018/``. An image whose id has a SHA-1 that is a multiple of 5 is held out: it is neither trained on
nor used to choose anything. What is written is the exponential moving average of the weights at the end.

FOLDER gets ``nuclei-small``, the state dict in float16, ``size_nuclei-small.npz``, ``curve.csv`` with the loss, and
every ten minutes ``checkpoint``, the average so far. The schedule goes by the clock, so that ``--minutes`` is how long
the training takes on any machine; the size model comes after it. ``--resume-size`` fits the size model alone, of the
weights that are there.

Every image is brought to 0 and 1 at its 1st and 99th percentile and rescaled so that its mean diameter becomes 17 px
times a random factor. Flows are recomputed of the transformed labels.

On two cores of an AMD EPYC with bfloat16 a step takes 0.8 s. A sixth of that is saved where glibc keeps memory for
itself: ``GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000``.
"""

# torch's modules are untyped calls
# mypy: disable-error-code="no-any-return,no-untyped-call"
from __future__ import annotations

import argparse
import csv
import hashlib
import math
import sys
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage.io import imread
from torch import nn

from spatialdata_segment.core.heat import label_flows
from spatialdata_segment.methods.cellpose.network import CPnet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Crop = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]

DIAMETER = 17.0
CHANNELS = 2, 16, 32, 64, 128
BATCHES = (16, 160), (8, 224)
"""Crops in a batch and their side, px: about as many pixels each."""
SPREAD = 0.6, 1.6
"""The factor on the diameter: its logarithm is triangular between these, highest at 1."""
RATE, WARM_UP, DECAY = 2e-3, 0.02, 1e-4
AVERAGE = 0.998
"""Share of the moving average that stays at a step."""
CHECKPOINT = 600.0
"""Seconds between checkpoints."""
TILE = 224
SIZES = 8.0, 100.0
"""Diameters that the size model is fit to, px."""


@dataclass
class Example:
    """An image, normalised, with its labels.

    Attributes
    ----------
    id
        Of the image.
    image
        ``(y, x)`` float32, 0 and 1 at the 1st and 99th percentile.
    smooth
        The same, smoothed for the step from its diameter to `DIAMETER`.
    labels
        ``(y, x)``, 0 where there is no nucleus.
    diameter
        Mean diameter of the nuclei, px.
    nuclei
        How many there are.
    """

    id: str
    image: NDArray[np.float32]
    smooth: NDArray[np.float32]
    labels: NDArray[np.int32]
    diameter: float
    nuclei: int


def held_out(name: str) -> bool:
    """Return whether the image of this id is kept from the training."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 5 == 0


def normalised(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bring the 1st and 99th percentile of an image to 0 and 1, without clipping; a flat image stays as it is."""
    low, high = np.percentile(image, (1, 99))
    values = image.astype(np.float32)
    return (values - np.float32(low)) / np.float32(high - low) if high > low else values


def read_examples(data: Path, *, held: bool) -> list[Example]:
    """Read the images that are trained on, or those held out.

    Parameters
    ----------
    data
        Folder that holds ``dsb2018``.
    held
        Those held out.

    Returns
    -------
    By id.
    """
    folder = data / "dsb2018"
    with (folder / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if held_out(row["id"]) == held]
    examples = []
    for row in sorted(rows, key=lambda row: row["id"]):
        image = imread(folder / "images" / f"{row['id']}.png")
        values = normalised(image if image.ndim == 2 else image[..., 0])
        diameter = float(row["mean_diameter_px"])
        step = diameter / DIAMETER
        smooth = gaussian_filter(values, 0.5 * math.sqrt(step**2 - 1)) if step > 1 else values
        labels = imread(folder / "labels" / f"{row['id']}.png").astype(np.int32)
        examples.append(Example(row["id"], values, smooth, labels, diameter, int(row["n_nuclei"])))
    return examples


def crop(example: Example, side: int, rng: np.random.Generator) -> Crop:
    """Cut a randomly transformed square out of an image.

    Parameters
    ----------
    example
        The image.
    side
        Of the square, px.
    rng
        Where the random numbers come from.

    Returns
    -------
    The image ``(y, x)``, 0 outside of it; the unit flows ``(2, y, x)``; the foreground ``(y, x)``, 0 or 1.
    """
    zoom = DIAMETER / example.diameter * math.exp(rng.triangular(math.log(SPREAD[0]), 0, math.log(SPREAD[1])))
    stretch = math.exp(rng.uniform(-0.08, 0.08))
    angle = rng.uniform(0, 2 * math.pi) if rng.random() < 0.7 else rng.integers(4) * math.pi / 2
    sine, cosine = math.sin(angle), math.cos(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    flip = np.diag([1.0, rng.choice((-1.0, 1.0))])
    matrix = turn @ np.diag([stretch / zoom, 1 / (stretch * zoom)]) @ flip
    # the centre of the square: inside by half its side, or, in a small image, such that all of it may be seen
    reach = side / 2 / zoom
    centre = [rng.uniform(*sorted((min(reach, n), max(n - reach, 0.0)))) for n in example.labels.shape]
    grid = np.stack(np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 2, indexing="ij"))
    points = np.einsum("ij,jyx->iyx", matrix, grid) + np.array(centre)[:, None, None] - 0.5
    source = example.smooth if rng.random() < 0.5 else example.image
    image = map_coordinates(source, points, order=1, mode="nearest").astype(np.float32)
    index = np.rint(points).astype(np.int64)
    height, width = example.labels.shape
    inside = (index[0] >= 0) & (index[0] < height) & (index[1] >= 0) & (index[1] < width)
    labels = np.zeros((side, side), np.int32)
    labels[inside] = example.labels[index[0][inside], index[1][inside]]
    image = altered(image, rng)
    image[~inside] = 0
    return image, label_flows(labels), (labels > 0).astype(np.float32)


def altered(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Change the contrast of a normalised image at random, blur it, add noise."""
    if rng.random() < 0.5:
        image = np.where(image > 0, np.maximum(image, 0) ** np.float32(math.exp(rng.uniform(-0.4, 0.4))), image)
    if rng.random() < 0.7:
        image = image * np.float32(math.exp(rng.uniform(-0.3, 0.3))) + np.float32(rng.uniform(-0.1, 0.1))
    if rng.random() < 0.25:
        image = gaussian_filter(image, rng.uniform(0.3, 1.2))
    if rng.random() < 0.3:
        image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 0.08))
    return image.astype(np.float32)


class Batches:
    """Batches of crops, prepared by threads of their own.

    Parameters
    ----------
    examples
        The images; one with more nuclei comes more often, by the square root of their number.
    seed
        Every crop has a random generator of its own, so that the order of the threads does not matter.
    threads
        How many prepare crops.
    """

    def __init__(self, examples: Sequence[Example], seed: int, threads: int) -> None:
        self.examples = examples
        self.seed = seed
        weights = np.sqrt([example.nuclei for example in examples])
        self.share = weights / weights.sum()
        self.pool = ThreadPoolExecutor(threads)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images ``(n, 2, y, x)`` and targets ``(n, 3, y, x)``: five times the flows, the foreground."""
        step = 0
        rng = np.random.default_rng((self.seed, 0))
        waiting: list[list[Future[Crop]]] = []
        while True:
            while len(waiting) < 2:
                n, side = BATCHES[rng.integers(len(BATCHES))]
                drawn = rng.choice(len(self.examples), n, p=self.share)
                jobs = [
                    self.pool.submit(crop, self.examples[k], side, np.random.default_rng((self.seed, 1, step, i)))
                    for i, k in enumerate(drawn)
                ]
                waiting.append(jobs)
                step += 1
            parts = [job.result() for job in waiting.pop(0)]
            images = np.zeros((len(parts), CHANNELS[0], *parts[0][0].shape), np.float32)
            images[:, 0] = [image for image, _, _ in parts]
            targets = np.stack([np.concatenate((5 * flows, mask[None])) for _, flows, mask in parts])
            yield torch.from_numpy(images).contiguous(memory_format=torch.channels_last), torch.from_numpy(targets)


def loss_of(maps: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return Cellpose's loss: of the flows and of the cell probability."""
    flows = nn.functional.mse_loss(maps[:, :2], targets[:, :2])
    return 0.5 * flows + nn.functional.binary_cross_entropy_with_logits(maps[:, 2], targets[:, 2])


def rate(done: float) -> float:
    """Return the learning rate when a share of the time is over: a ramp, then half a cosine down to 0."""
    if done < WARM_UP:
        return RATE * max(done / WARM_UP, 0.01)
    return RATE * 0.5 * (1 + math.cos(math.pi * min((done - WARM_UP) / (1 - WARM_UP), 1.0)))


def settle(net: CPnet, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], n: int) -> None:
    """Recompute the running statistics of batch normalisation as the mean over ``n`` batches."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    net.train()
    with torch.no_grad():
        for _ in range(n):
            net(next(batches)[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()


def save(net: CPnet, path: Path) -> None:
    """Write the state dict, numbers with a fraction as float16."""
    state = {
        name: value.detach().to(torch.float16 if value.is_floating_point() else value.dtype).contiguous()
        for name, value in net.state_dict().items()
    }
    partial = path.with_name(path.name + ".partial")
    torch.save(OrderedDict(state), partial)
    partial.replace(path)


def load(path: Path) -> CPnet:
    """Read what :func:`save` wrote, as float32."""
    net = CPnet(CHANNELS, 3, 3, DIAMETER)
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def train(examples: Sequence[Example], out: Path, minutes: float, seed: int, threads: int) -> CPnet:
    """Train the network.

    Parameters
    ----------
    examples
        What it is trained on.
    out
        Folder of the checkpoints and the curve.
    minutes
        How long; the last part of it goes to the statistics of batch normalisation.
    seed
        Of the weights and the crops.
    threads
        That prepare crops.

    Returns
    -------
    The moving average, in inference mode.
    """
    torch.manual_seed(seed)
    net = CPnet(CHANNELS, 3, 3, DIAMETER).train()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.diam_labels.data.fill_(float(np.mean([example.diameter for example in examples])))
    average = deepcopy(net)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=RATE, weight_decay=DECAY)
    batches = iter(Batches(examples, seed, threads))
    label_flows(examples[0].labels)  # its compilation is not part of the time
    start = last = time.monotonic()
    seconds = 60 * minutes * 0.98
    losses: list[float] = []
    with (out / "curve.csv").open("w") as curve:
        print("step,minutes,rate,loss", file=curve, flush=True)
        step = 0
        while (done := (time.monotonic() - start) / seconds) < 1:
            images, targets = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = rate(done)
            with torch.autocast("cpu", torch.bfloat16):
                maps, _ = net(images)
            loss = loss_of(maps.float(), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            losses.append(loss.item())
            # early on the average is over fewer steps
            keep = min(AVERAGE, step / (step + 10))
            with torch.no_grad():
                for mean, value in zip(average.parameters(), net.parameters(), strict=True):
                    mean.lerp_(value, 1 - keep)
                for mean, value in zip(average.buffers(), net.buffers(), strict=True):
                    if mean.is_floating_point():
                        mean.lerp_(value, 1 - keep)
            if step % 50 == 0 or step in (1, 10, 20):
                recent = float(np.mean(losses[-50:]))
                passed = (time.monotonic() - start) / 60
                print(f"{step},{passed:.2f},{rate(done):.6f},{recent:.4f}", file=curve, flush=True)
                print(f"step {step}, {passed:.1f} min, rate {rate(done):.5f}, loss {recent:.4f}", flush=True)
            if time.monotonic() - last > CHECKPOINT:
                last = time.monotonic()
                save(average, out / "checkpoint")
    save(average, out / "checkpoint")
    settle(average, batches, max(2, min(100, step // 50)))
    print(f"{step} steps", flush=True)
    return average


def style_of(net: CPnet, image: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the style of a normalised image at its own scale: the mean over tiles, of length 1.

    The tiles, their places and the padding with 0 are those of Cellpose: 224 px, which overlap by a tenth.

    Parameters
    ----------
    net
        In inference mode.
    image
        ``(y, x)``.

    Returns
    -------
    ``(128,)``
    """
    pads = []
    for n in image.shape:
        more = 16 * math.ceil(n / 16) - n
        before, after = 8 + more // 2, 8 + more - more // 2
        pads.append((before, max(after, TILE - n - before)))
    padded = np.pad(image, pads)
    starts = []
    for n in padded.shape:
        count = 1 if n <= TILE else math.ceil(1.2 * n / TILE)
        starts.append(np.linspace(0, n - TILE, count).astype(int))
    tiles = np.stack([padded[y : y + TILE, x : x + TILE] for y in starts[0] for x in starts[1]])
    total = np.zeros(CHANNELS[-1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=False):
        for k in range(0, len(tiles), 8):
            batch = torch.zeros((len(tiles[k : k + 8]), CHANNELS[0], TILE, TILE))
            batch[:, 0] = torch.from_numpy(tiles[k : k + 8])
            total += _style(net, batch).double().sum(dim=0).numpy()
    return np.asarray(total / np.linalg.norm(total))


def _style(net: CPnet, x: torch.Tensor) -> torch.Tensor:
    """Run the first half of the network, which the style comes from."""
    for k, block in enumerate(net.downsample.blocks):
        x = block(nn.functional.max_pool2d(x, 2) if k else x)
    style = x.mean(dim=(2, 3))
    return style / style.square().sum(dim=1, keepdim=True).sqrt()


def resized(image: NDArray[np.float32], zoom: float) -> NDArray[np.float32]:
    """Rescale an image, linear between the centres of its pixels, as Cellpose does."""
    axes = [np.clip((np.arange(max(1, round(n * zoom))) + 0.5) / zoom - 0.5, 0, n - 1) for n in image.shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    return np.asarray(map_coordinates(image, points, order=1, mode="nearest"), np.float32)


def fit_size(
    net: CPnet, examples: Sequence[Example], seed: int, repeats: int = 8, room: int = 640
) -> dict[str, NDArray[np.float64]]:
    """Fit diameters to styles by ridge regression.

    Parameters
    ----------
    net
        In inference mode.
    examples
        What the network was trained on. Each comes at its own scale and, ``repeats`` times, at others.
    seed
        Of the scales.
    repeats
        Random scales of an image.
    room
        The largest side of a rescaled image, px; of a larger one a random part is taken.

    Returns
    -------
    ``A`` (1, 128), ``smean`` (128,), ``ymean`` and ``diam_mean``, such that
    ``diam_mean * exp(A @ (style - smean) + ymean)`` is the diameter.
    """
    rng = np.random.default_rng((seed, 2))
    styles, sizes, groups = [], [], []
    for k, example in enumerate(examples):
        for repeat in range(repeats + 1):
            zoom = 1.0 if repeat == 0 else math.exp(rng.uniform(math.log(0.4), math.log(2.5)))
            zoom = float(np.clip(zoom, SIZES[0] / example.diameter, SIZES[1] / example.diameter))
            part = [
                slice(at, at + math.ceil(room / zoom))
                for at in (int(rng.integers(max(1, n - math.ceil(room / zoom) + 1))) for n in example.image.shape)
            ]
            if not example.labels[part[0], part[1]].any():
                continue
            source = example.image[part[0], part[1]]
            if zoom < 1 and repeat % 2:
                source = gaussian_filter(source, 0.5 * math.sqrt(zoom**-2 - 1))
            styles.append(style_of(net, source if zoom == 1 else altered(resized(source, zoom), rng)))
            sizes.append(math.log(example.diameter * zoom / DIAMETER))
            groups.append(k)
    x, y, group = np.array(styles), np.array(sizes), np.array(groups)
    smean, ymean = x.mean(axis=0), y.mean()

    def ridge(rows: NDArray[np.bool_], strength: float) -> NDArray[np.float64]:
        part = x[rows] - smean
        return np.linalg.solve(part.T @ part + strength * np.eye(x.shape[1]), part.T @ (y[rows] - ymean))

    # the strength is chosen by leaving out fifths of the images that were trained on
    errors = {}
    for strength in 10.0 ** np.arange(-4, 3.1, 0.5):
        parts = [
            np.abs((x[group % 5 == f] - smean) @ ridge(group % 5 != f, strength) + ymean - y[group % 5 == f])
            for f in range(5)
        ]
        errors[strength] = float(np.mean(np.concatenate(parts)))
    best = min(errors, key=errors.__getitem__)
    print(f"size model: {len(y)} styles, ridge {best:.2g}, left-out mean error {errors[best]:.3f}", flush=True)
    a = ridge(np.ones(len(y), bool), best)
    return {"A": a[None], "smean": smean, "ymean": np.float64(ymean), "diam_mean": np.float64(DIAMETER)}


def check_size(net: CPnet, model: dict[str, NDArray[np.float64]], examples: Sequence[Example]) -> None:
    """Print how far the size model is off on images held out."""
    errors = []
    for example in examples:
        estimate = (model["A"] @ (style_of(net, example.image) - model["smean"])).item() + float(model["ymean"])
        errors.append(abs(estimate - math.log(example.diameter / DIAMETER)))
    median, ninth = np.percentile(errors, (50, 90))
    print(f"size, held out: |log(estimate / true)| median {median:.3f}, 90th percentile {ninth:.3f}", flush=True)


def main() -> int:
    """Train, fit the size model, write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds dsb2018")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--minutes", type=float, default=85, help="how long the network is trained")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the crops")
    parser.add_argument("--threads", type=int, default=2, help="of torch, and as many that prepare crops")
    parser.add_argument("--resume-size", action="store_true", help="fit the size model alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    examples = read_examples(arguments.data, held=False)
    others = read_examples(arguments.data, held=True)
    print(f"{len(examples)} images to train on, {len(others)} held out", flush=True)
    path = arguments.out / "nuclei-small"
    if not arguments.resume_size:
        save(train(examples, arguments.out, arguments.minutes, arguments.seed, arguments.threads), path)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", flush=True)
    net = load(path)
    model = fit_size(net, examples, arguments.seed)
    np.savez(arguments.out / "size_nuclei-small.npz", **model)  # type: ignore[arg-type]
    check_size(net, model, others)
    return 0


if __name__ == "__main__":
    sys.exit(main())
