"""Which method a model type stands for, and which channels it gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from spatialdata_segment._infer.he import find_route
from spatialdata_segment._problems import listed, problems_of
from spatialdata_segment.config import Workflow, as_workflow
from spatialdata_segment.errors import InputError, MissingError, require
from spatialdata_segment.methods.cellpose import models as cellpose
from spatialdata_segment.methods.cellpose.method import Cellpose
from spatialdata_segment.methods.registry import known_workflows
from spatialdata_segment.methods.stardist.method import StarDist
from spatialdata_segment.methods.stardist.models import PRETRAINED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spatialdata_segment.methods.base import Method

DEFAULT = "cyto3"
"""The model type where none is asked for."""
HE = "he", "he2"
"""Names of proprietary models, which stand for the open route of `he`."""
_NUCLEAR = "nuclei", "nuclei-small"


@dataclass(frozen=True)
class Model:
    """What segments.

    Attributes
    ----------
    model_type
        As it was asked for.
    part
        A method, which gets its channels by their order, or a workflow with channel rules of its own.
    takes
        Channels of an image that the method gets, at most, where none are named.
    at_most
        Channels that it gets at most, where they are named; None: ``takes``.
    note
        What stands in for a model that is not there, and why.
    """

    model_type: str
    part: Method | Workflow
    takes: int = 1
    note: str | None = None
    at_most: int | None = None

    def workflow(
        self, channels: Sequence[str | int] | None, names: Sequence[str], image: str
    ) -> tuple[Workflow, list[str | int] | None]:
        """Return the workflow of an image, and the channels to name to `segment`.

        Raises
        ------
        InputError
            If one is named twice, or there are more than the method takes.
        """
        if channels is not None:
            _check_once(channels, names, image)
        if isinstance(self.part, Workflow):
            return self.part, None if channels is None else list(channels)
        if self.part.channels is not None:  # a stain of an RGB image
            if len(names) != 3 or channels not in (None, [0, 1, 2], list(names)):
                raise InputError(
                    f"{image} has {len(names)} channels ({', '.join(names)}), --channels {channels}: {self.model_type} "
                    "takes the haematoxylin of an image of exactly R, G and B"
                )
            return Workflow(cell=self.part), None
        if channels is None:
            if len(names) > self.takes or (self.model_type in HE and len(names) != 3):
                told = ", ".join(f"{k}: {name}" for k, name in enumerate(names))
                raise InputError(
                    f"{image} has {len(names)} channels ({told}), and {self.model_type} takes "
                    f"{3 if self.model_type in HE else self.takes}: say which with --channels, such as {self._usual}"
                )
            channels = list(range(len(names)))
        most = self.takes if self.at_most is None else self.at_most
        if len(channels) > most:
            given = ",".join(map(str, channels))
            raise InputError(
                f"--channels {given} are {len(channels)}, and {self.model_type} takes {most}: name no more, such as "
                f"{self._usual}"
            )
        return Workflow(cell=_with(self.part, channels=tuple(channels))), None

    @property
    def _usual(self) -> str:
        """What stands after --channels, as a rule."""
        if self.model_type in HE or (isinstance(self.part, StarDist) and self.takes == 3):
            return "0,1,2 (R, G, B)"
        if self.takes == 1:
            return "0 (nucleus)"
        return "0 (membrane) or 0,1 (membrane, nucleus)"


def find_model(
    model_type: str | None,
    *,
    model_path: Path | None = None,
    size_model_path: Path | None = None,
    scale: float | None = None,
    diameter: float | None = None,
    like: Cellpose | None = None,
) -> Model:
    """Return what a model type, files of weights and the settings of a configuration stand for.

    Parameters
    ----------
    model_type
        Name of a model of Cellpose, "he" or "he2", a pretrained model of StarDist, or a workflow. None: "cyto3".
    model_path, size_model_path
        Weights in place of those of that name, and their size model; the type then only says what they are for.
    scale, diameter
        `Cellpose`'s ``rescale`` and ``diameter``.
    like
        Has the other settings.

    Raises
    ------
    MissingError
        If there is no such model.
    InputError
        If the settings do not go together.
    """
    name = DEFAULT if model_type is None else model_type
    if size_model_path is not None and model_path is None:
        raise InputError(f"--size-model-path {size_model_path} without --model-path: it goes with weights in a file")
    own: dict[str, Any] = {"rescale": scale, "diameter": diameter, "size_model_path": size_model_path}
    own = {k: v for k, v in own.items() if v is not None}
    settings = {} if like is None else like.model_dump(exclude_unset=True, exclude={"model", "model_path"})
    settings |= own
    if model_path is not None:
        cellpose.check_file(model_path)
        made = _made(None, settings | {"model_path": model_path})
        return Model(name, made, 3 if name in HE else _takes(made), at_most=3)  # of a network that is not known
    if name in HE:
        route = find_route(settings)
        return Model(name, route.method, 3, f"{name}: {route.note}")
    if name in cellpose.BUILT_IN or name in cellpose.own_models():
        made = _made(name, settings)
        return Model(name, made, _takes(made), at_most=None if name in cellpose.BUILT_IN else 3)
    if name in PRETRAINED or name in known_workflows():
        if settings:
            given = ", ".join(settings)
            raise InputError(f"{name} is no model of Cellpose, and {given} {'is' if len(settings) == 1 else 'are'} "
                             "settings of such: leave them out")  # fmt: skip
        if name in PRETRAINED:
            star = StarDist(name)
            return Model(name, star, star.said.n_channels)
        return Model(name, as_workflow(name))
    known = [*HE, *cellpose.BUILT_IN, *cellpose.own_models(), *PRETRAINED, *known_workflows()]
    raise MissingError(f"no model type {name!r}: known are {', '.join(dict.fromkeys(known))}; for a file, --model-path")


def fetch(model: Model, *, progress: bool) -> None:
    """Bring the weights of a model of Cellpose, before any image is read.

    Raises
    ------
    MissingError
        If they are not there and cannot be downloaded, or torch is not installed.
    """
    if isinstance(model.part, Workflow) or not model.part.uses_device:
        return
    try:
        require("torch", "stardist" if isinstance(model.part, StarDist) else "cellpose")
    except MissingError as error:
        raise MissingError(
            f"--model-type {model.model_type}: {error}. Without it --model-type dapi segments nuclei, and wga nuclei "
            "and cells of two channels, by thresholds"
        ) from error
    if isinstance(model.part, Cellpose) and model.part.model is not None:
        asks = model.part.diameter is None and model.part.rescale is None
        cellpose.ensure_model(model.part.model, size=asks, progress=progress)


def _check_once(channels: Sequence[str | int], names: Sequence[str], image: str) -> None:
    """Raise `InputError` where a channel is named twice, also once by its name and once by its index."""
    at = [names.index(c) if isinstance(c, str) and c in names else c for c in channels]
    for k, channel in enumerate(at):
        if channel in at[:k]:
            both = " and ".join(map(str, dict.fromkeys((channels[at.index(channel)], channels[k]))))
            raise InputError(
                f"--channels {','.join(map(str, channels))} names a channel of {image} twice ({both}): name each once"
            )


def _made(model: str | None, settings: Mapping[str, Any]) -> Cellpose:
    try:
        return Cellpose(model, **settings)
    except ValidationError as error:
        told = listed(problems_of(error, Cellpose, settings))
        raise InputError(f"settings of {model or settings['model_path']}: {told}") from error


def _takes(method: Cellpose) -> int:
    """Return how many channels of an image a network gets: nuclear ones one, later ones three, the others two."""
    if method.model is not None:
        built_in = cellpose.BUILT_IN.get(method.model)
        if built_in is not None:
            return 1 if method.model in _NUCLEAR else 3 if built_in.generation >= 4 else 2
    return 2


def _with(method: Method, **changes: Any) -> Method:
    """Return a method with other settings, checked."""
    values = method.model_dump(exclude_unset=True) | changes
    try:
        return type(method).model_validate(values)
    except ValidationError as error:
        raise InputError(listed(problems_of(error, type(method), values))) from error
