"""The directions in which a StarDist volume model tells distances, and the triangles between them.

The constructions, the order of the rays and their precision are those of `stardist.rays3d` (0.9.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Rays(NamedTuple):
    """Directions and triangles.

    Attributes
    ----------
    vertices
        ``(n, 3)`` float32, axes ``(z, y, x)``: the point at distance 1 along each ray.
    faces
        ``(m, 3)`` int32: the rays at the corners of each triangle, oriented alike.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]


def rays_of(said: Mapping[str, Any], n_rays: int | None = None) -> Rays:
    """Make the rays that a configuration names (``rays_json``).

    Parameters
    ----------
    said
        ``name`` of StarDist's class, and ``kwargs``, what it is made with.
    n_rays
        How many are expected; None: any number.

    Raises
    ------
    InputError
        If StarDist has no rays of that name, not with such settings, or not as many.
    """
    name, settings = said.get("name"), said.get("kwargs", {})
    if not isinstance(name, str) or name not in _KINDS:
        raise InputError(f"rays {name!r} are not known: expected one of {', '.join(sorted(_KINDS))}")
    if not isinstance(settings, Mapping):
        raise InputError(f"rays {name} have kwargs {settings!r} in config.json's rays_json, expected a JSON object")
    try:
        rays = _checked(*_KINDS[name](**settings))
    except (TypeError, ValueError, ArithmeticError, IndexError, RuntimeError) as error:  # Qhull's is a RuntimeError
        why = str(error).partition("\n")[0]
        raise InputError(
            f"rays {name} cannot be made with {dict(settings)}: {why}; take rays_json of the config.json that was "
            "written with the weights"
        ) from error
    if n_rays is not None and len(rays.vertices) != n_rays:
        raise InputError(
            f"rays_json of config.json makes {len(rays.vertices)} rays ({name}, {dict(settings)}), and n_rays is "
            f"{n_rays}: expected as many; take the config.json that was written with the weights"
        )
    return rays


def _checked(vertices: Any, faces: Any) -> Rays:
    rays = Rays(np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32))
    for what, array in zip(Rays._fields, rays, strict=True):
        if array.ndim != 2 or array.shape[1] != 3 or not len(array):
            raise ValueError(f"{what} of shape {array.shape}, expected (n, 3)")
    if not np.isfinite(rays.vertices).all():
        raise ValueError("vertices that are not finite")
    if rays.faces.min() < 0 or rays.faces.max() >= len(rays.vertices):
        raise ValueError(
            f"faces of the vertices {rays.faces.min()} to {rays.faces.max()}, expected 0 to {len(rays.vertices) - 1}"
        )
    return rays


Shape = tuple[Any, Any]


def _golden_spiral(n: int = 70, anisotropy: Any = None) -> Shape:
    from scipy.spatial import ConvexHull

    if n < 4:
        raise ValueError(f"{n} points, expected at least 4")
    phi = (3.0 - np.sqrt(5.0)) * np.pi * np.arange(n)
    z = np.linspace(-1, 1, n)
    rho = np.sqrt(1.0 - z**2)
    vertices = np.stack([z, rho * np.sin(phi), rho * np.cos(phi)]).T
    vertices = vertices / _scale(anisotropy)
    faces = ConvexHull(vertices).simplices
    outward = np.linalg.det(vertices[faces]) > 0
    faces = np.where(outward[:, None], faces[:, ::-1], faces)
    return vertices / np.linalg.norm(vertices, axis=-1, keepdims=True), faces


def _scale(anisotropy: Any) -> NDArray[np.float64]:
    scale = np.ones(3) if anisotropy is None else np.array(anisotropy, float)
    if scale.shape != (3,) or not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError(f"anisotropy is {anisotropy}, expected three numbers above 0, along z, y, x")
    return scale


def _cartesian(n_rays_x: int = 11, n_rays_z: int = 5) -> Shape:
    vertices = []
    for mz in range(n_rays_z):
        for mx in range(n_rays_x):
            phi = mx * np.float32(2.0 * np.pi / n_rays_x)
            theta: Any = mz * np.float32(np.pi / n_rays_z)
            is_pole = mz in (0, n_rays_z - 1)
            if is_pole:
                theta = np.pi - 1e-12 if mz else 1e-12
            dx, dy = np.cos(phi) * np.sin(theta), np.sin(phi) * np.sin(theta)
            vertices.append([np.cos(theta), dy + 1e-12 * is_pole, dx + 1e-12 * is_pole])
    faces = []
    for mz in range(n_rays_z - 1):
        for mx in range(n_rays_x):
            here, beside = mz * n_rays_x + mx, mz * n_rays_x + (mx + 1) % n_rays_x
            faces.append([here, beside + n_rays_x, beside])
            faces.append([here, here + n_rays_x, beside + n_rays_x])
    return np.array(vertices), np.array(faces)


def _tetrahedron(n_level: int = 4) -> Shape:
    s = np.sqrt
    vertices = [
        [s(8.0 / 9), 0.0, -1.0 / 3],
        [-s(2.0 / 9), s(2.0 / 3), -1.0 / 3],
        [-s(2.0 / 9), -s(2.0 / 3), -1.0 / 3],
        [0.0, 0.0, 1.0],
    ]
    return _divided(vertices, [[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]], n_level)


def _octahedron(n_level: int = 4) -> Shape:
    vertices = [[0, 0, 1], [0, 1, 0], [0, 0, -1], [0, -1, 0], [1, 0, 0], [-1, 0, 0]]
    faces = [[0, 1, 4], [0, 5, 1], [1, 2, 4], [1, 5, 2], [2, 3, 4], [2, 5, 3], [3, 0, 4], [3, 5, 0]]
    return _divided(vertices, faces, n_level)


def _divided(vertices: Any, faces: Any, n_level: int) -> Shape:
    """Split every triangle into four, on the sphere, as often as there are levels beyond the first."""
    points = [np.array(v, float) for v in vertices]
    for _ in range(n_level - 1):
        middles: dict[tuple[int, int], int] = {}

        def middle(a: int, b: int, middles: dict[tuple[int, int], int] = middles) -> int:
            edge = (min(a, b), max(a, b))
            if edge not in middles:
                point = 0.5 * (points[a] + points[b])
                points.append(point * (1.0 / np.linalg.norm(point)))
                middles[edge] = len(points) - 1
            return middles[edge]

        split = []
        for a, b, c in faces:
            ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
            split += [[a, ab, ca], [b, bc, ab], [c, ca, bc], [ab, bc, ca]]
        faces = split
    return np.array(points), np.array(faces)


def _explicit(vertices0: Any, faces0: Any) -> Shape:
    return np.array(vertices0), np.array(faces0)


_KINDS: dict[str, Callable[..., Shape]] = {
    "Rays_GoldenSpiral": _golden_spiral,
    "Rays_Cartesian": _cartesian,
    "Rays_Tetra": _tetrahedron,
    "Rays_Octo": _octahedron,
    "Rays_Explicit": _explicit,
}
