"""The pixels of :class:`~spatialdata_segment.testing.Tissue`: pure numba, no state, no global random numbers.

Every number is a hash of the seed and of a position in the whole image (a site of the grid of cells, a node
of a noise lattice, a pixel), so a box computed alone holds the same bits as the same box of the whole.
Whatever is added up is added in raster order of the sites. 2D is 3D with one plane at ``z = 0``.

Lengths are pixels of the y and x axes; plane ``z`` lies at ``z * anisotropy``.
"""

from __future__ import annotations

import math

import numba
import numpy as np

MAX_NUCLEI = 3
"""Ids that each site of the grid owns: the cell takes the first, its nuclei the first and those after."""

# Fields of one site, the columns of the float32 table: fractional centre (z, y, x), weight, the amplitudes of
# the two stains, then MAX_NUCLEI times centre (z, y, x), semi-axes (z, y, x), cosine and sine in the plane.
_CENTRE, _WEIGHT, _AMP, _NUCLEI, _NUCLEUS = 0, 3, 4, 6, 8
_COLUMNS = _NUCLEI + MAX_NUCLEI * _NUCLEUS

# The camera, in counts: offset, what stains of amplitude 1 bring, variance per count, read noise.
_OFFSET, _DAPI, _WGA, _GAIN, _READ = 200.0, 9000.0, 6000.0, 6.0, 40.0

_JITTER = 0.25  # of the pitch: two centres are never nearer than half a pitch
_WAVE, _PERIOD = 0.8, 11.3  # of the pitch: rows of the grid are bent by two shears, so that none is seen
_SPREAD = 0.18  # of the radius: how far cells differ in weight
_EXTENT = 0.12  # of the diameter: how far a cell without neighbours grows past its weight
_WARP = 0.07  # of the diameter: how far borders are bent
_TILE = 128, 512

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")


@_jit
def _mix(x):  # type: ignore[no-untyped-def]
    """Scramble 64 bits: the finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@_jit
def _next(key, value):  # type: ignore[no-untyped-def]
    """Hash a signed integer under a key."""
    return _mix(key + np.uint64(0x9E3779B97F4A7C15) * np.uint64(value + 1))


@_jit
def _hash(key, z, y, x):  # type: ignore[no-untyped-def]
    return _next(_next(_next(key, z), y), x)


@_jit
def _unit(bits):  # type: ignore[no-untyped-def]
    """Return a number in [0, 1)."""
    return np.float64(bits >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@_jit
def _smooth(t):  # type: ignore[no-untyped-def]
    t = min(max(t, np.float32(0)), np.float32(1))
    return t * t * (np.float32(3) - np.float32(2) * t)


@_jit
def _axis(start, n, pitch, step):  # type: ignore[no-untyped-def]
    """Return the node below each position along an axis, from the first on, and the weight of the next."""
    node = np.empty(n, np.int64)
    weight = np.empty(n, np.float32)
    first = np.int64(math.floor(start * step / pitch))
    for i in range(n):
        at = (start + i) * step / pitch
        below = math.floor(at)
        node[i] = np.int64(below) - first
        weight[i] = _smooth(np.float32(at - below))
    return first, node, weight


@_jit
def _field(key, pitch, step, z0, y0, x0, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with value noise in [0, 1): hashed nodes ``pitch`` apart, blended smoothly."""
    nz, ny, nx = out.shape
    fz, jz, wz = _axis(z0, nz, pitch, step)
    fy, jy, wy = _axis(y0, ny, pitch, 1.0)
    fx, jx, wx = _axis(x0, nx, pitch, 1.0)
    nodes = np.empty((jz[-1] + 2, jy[-1] + 2, jx[-1] + 2), np.float32)
    for a in range(nodes.shape[0]):
        for b in range(nodes.shape[1]):
            row = _next(_next(key, fz + a), fy + b)
            for c in range(nodes.shape[2]):
                nodes[a, b, c] = np.float32(_unit(_next(row, fx + c)))
    line = np.empty(nodes.shape[2], np.float32)
    for z in range(nz):
        for y in range(ny):
            a, b, v, w = jz[z], jy[y], wz[z], wy[y]
            for c in range(line.size):
                low = nodes[a, b, c] + w * (nodes[a, b + 1, c] - nodes[a, b, c])
                top = nodes[a + 1, b, c] + w * (nodes[a + 1, b + 1, c] - nodes[a + 1, b, c])
                line[c] = low + v * (top - low)
            for x in range(nx):
                left = line[jx[x]]
                out[z, y, x] = left + wx[x] * (line[jx[x] + 1] - left)


@_jit
def _centre(key, iz, iy, ix, planar):  # type: ignore[no-untyped-def]
    """Return the centre (z, y, x) of a site, in sites, and the weight of its cell, about 1.

    Each coordinate lies between 0.55 below and 2.05 above the site's own (see `_window`).
    """
    bits = _hash(key, iz, iy, ix)
    z = 0.0
    if not planar:
        z = iz + 0.5 + 2 * _JITTER * (_unit(_next(bits, 0)) - 0.5)
    y = iy + 0.5 + 0.5 * (iz & 1) + 2 * _JITTER * (_unit(_next(bits, 1)) - 0.5)
    x = ix + 0.5 + 0.5 * (iy & 1) + 2 * _JITTER * (_unit(_next(bits, 2)) - 0.5)
    turn = 2 * math.pi / _PERIOD
    y += _WAVE * math.sin(turn * x + 0.7 * z)
    x += _WAVE * math.sin(turn * y + 0.4 * z)
    return z, y, x, 1.0 + 2 * _SPREAD * (_unit(_next(bits, 3)) - 0.5)


@_jit
def reach_of(diameter, blur):  # type: ignore[no-untyped-def]
    """Return how far (px) from its centre a cell can change a pixel."""
    grow = 0.5 * diameter * (1 + _SPREAD) + _EXTENT * diameter + _gap(diameter) + 2 * (2 * blur + 1)
    return np.int64(math.ceil(grow + 1.8 * _WARP * diameter))


@_jit
def _gap(diameter):  # type: ignore[no-untyped-def]
    """Return how much nearer (px) to its centre than to the next one a pixel of a loose cell must be."""
    return max(4.0, 0.18 * diameter)


@_jit
def _window(start, n, step, reach, pitch):  # type: ignore[no-untyped-def]
    """Return the sites ``low <= site < high`` of an axis whose cells can change ``n`` pixels."""
    low = math.floor((start * step - reach) / pitch - 2.05)
    high = math.floor(((start + n) * step + reach) / pitch + 0.55) + 1
    return np.int64(low), np.int64(high)


@_jit
def _occupied(key, iz, iy, ix, density, planar):  # type: ignore[no-untyped-def]
    """Tell whether a site holds a cell: half of the empty ones are single, half lie together in holes."""
    share = math.sqrt(density)
    if _unit(_hash(_next(key, 1), iz, iy, ix)) >= share:
        return False
    hole = np.float64(1e30)
    value = 0.0
    cz, cy, cx = iz // 5, iy // 5, ix // 5
    for dz in range(-1 + planar, 2 - planar):
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                bits = _hash(_next(key, 2), cz + dz, cy + dy, cx + dx)
                oz = 0.0 if planar else 5 * (cz + dz + _unit(_next(bits, 0))) - iz
                oy = 5 * (cy + dy + _unit(_next(bits, 1))) - iy
                ox = 5 * (cx + dx + _unit(_next(bits, 2))) - ix
                distance = oz * oz + oy * oy + ox * ox
                if distance < hole:
                    hole, value = distance, _unit(_next(bits, 3))
    return value < share


@_jit
def _room(taken, at, a, b, c, pitch, radius, extent, planar):  # type: ignore[no-untyped-def]
    """Return how far the border of a cell is from its centre, in the direction where it is nearest."""
    room = radius * at[a, b, c, 3] + extent
    for dz in range(-1 + planar, 2 - planar):
        for dy in range(-1, 2):
            for dx in range(-2, 3):
                if (dz or dy or dx) and taken[a + dz, b + dy, c + dx]:
                    apart = 0.0
                    for k in range(3):
                        apart += (at[a + dz, b + dy, c + dx, k] - at[a, b, c, k]) ** 2
                    heavier = at[a, b, c, 3] - at[a + dz, b + dy, c + dx, 3]
                    room = min(room, 0.5 * (math.sqrt(apart) * pitch + radius * heavier))
    return room


@_jit
def _nuclei(bits, room, diameter, several, none, planar, site):  # type: ignore[no-untyped-def]
    """Write the nuclei of one cell into its row of the table; return how many."""
    if _unit(_next(bits, 10)) < none:
        return 0
    count = 1
    if _unit(_next(bits, 11)) < several:
        count = 2 if _unit(_next(bits, 12)) < 0.75 else MAX_NUCLEI
    radius = min(0.31 * diameter * (0.85 + 0.3 * _unit(_next(bits, 13))), max(room, 0.18 * diameter))
    turn = 2 * math.pi * _unit(_next(bits, 14))
    for k in range(count):
        own = _next(bits, 20 + k)
        angle = turn + 2 * math.pi * k / count
        away, size = 0.25 * radius * _unit(_next(own, 0)), radius
        if count > 1:
            away, size = (0.8 * radius, 0.6 * radius) if count == 2 else (0.88 * radius, 0.56 * radius)
        stretch = 1.0 + (0.45 if count == 1 else 0.12) * _unit(_next(own, 1))
        lean = math.pi * _unit(_next(own, 2))
        at = _NUCLEI + k * _NUCLEUS
        site[at] = 0.0 if planar else 0.4 * away * (2 * _unit(_next(own, 3)) - 1)
        site[at + 1], site[at + 2] = away * math.sin(angle), away * math.cos(angle)
        site[at + 3] = size * (0.85 + 0.3 * _unit(_next(own, 4)))
        site[at + 4], site[at + 5] = size / math.sqrt(stretch), size * math.sqrt(stretch)
        site[at + 6], site[at + 7] = math.cos(lean), math.sin(lean)
    return count


@_jit
def _sites(key, low, high, pitch, diameter, density, touching, several, none, planar):  # type: ignore[no-untyped-def]
    """Return what the cells of the sites ``low <= site < high`` (z, y, x) are.

    Returns
    -------
    ``(n,)`` bool (holds a cell), ``(n, 3)`` int64 (whole part of the centre), ``(n, columns)`` float32,
    ``(n,)`` number of nuclei, ``(n,)`` bool (keeps apart from its neighbours); in raster order of the sites.
    """
    nz, ny, nx = high[0] - low[0], high[1] - low[1], high[2] - low[2]
    rim = 0 if planar else 1
    taken = np.empty((nz + 2 * rim, ny + 2, nx + 4), np.bool_)
    at = np.empty((*taken.shape, 4))
    for a in range(taken.shape[0]):
        for b in range(taken.shape[1]):
            for c in range(taken.shape[2]):
                iz, iy, ix = low[0] + a - rim, low[1] + b - 1, low[2] + c - 2
                taken[a, b, c] = _occupied(key, iz, iy, ix, density, planar)
                if taken[a, b, c]:
                    at[a, b, c] = _centre(key, iz, iy, ix, planar)
    n = nz * ny * nx
    held, loose = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    whole = np.zeros((n, 3), np.int64)
    table = np.zeros((n, _COLUMNS), np.float32)
    count = np.zeros(n, np.int64)
    radius, extent = 0.5 * diameter, _EXTENT * diameter
    for i in range(n):
        a, b, c = i // (ny * nx), i // nx % ny, i % nx
        bits = _hash(_next(key, 3), low[0] + a, low[1] + b, low[2] + c)
        a, b, c = a + rim, b + 1, c + 2
        if not taken[a, b, c]:
            continue
        held[i] = True
        loose[i] = _unit(_next(bits, 2)) >= touching
        for k in range(3):
            place = at[a, b, c, k] * pitch
            whole[i, k] = np.int64(math.floor(place))
            table[i, _CENTRE + k] = place - math.floor(place)
        table[i, _WEIGHT] = radius * at[a, b, c, 3]
        table[i, _AMP] = 0.35 + 0.75 * _unit(_next(bits, 0)) ** 0.7
        table[i, _AMP + 1] = 0.6 + 0.6 * _unit(_next(bits, 1))
        room = _room(taken, at, a, b, c, pitch, radius, extent, planar)
        count[i] = _nuclei(bits, room, diameter, several, none, planar, table[i])
    return held, whole, table, count, loose


@_jit
def _splat(held, whole, table, reach, step, z0, y0, x0, warp, near, index):  # type: ignore[no-untyped-def]
    """Find the two nearest cells of every pixel by ``distance - weight``: values and rows of the table."""
    nz, ny, nx = near.shape[1:]
    near[:] = np.inf
    index[:] = -1
    for i in range(held.size):
        if not held[i]:
            continue
        wz, wy, wx = whole[i, 0], whole[i, 1], whole[i, 2]
        fz, fy, fx, weight = table[i, 0], table[i, 1], table[i, 2], table[i, _WEIGHT]
        top, bottom = max(wy - reach - y0, 0), min(wy + reach + 2 - y0, ny)
        if top >= bottom or wx - reach - x0 >= nx or wx + reach + 2 - x0 <= 0:
            continue
        for z in range(nz):
            oz = np.float32((z + z0) * step - wz) - fz
            for y in range(top, bottom):
                oy = np.float32(y + y0 - wy) - fy
                room = np.float32(reach * reach) - oz * oz - oy * oy
                if room <= 0:
                    continue
                half = np.int64(math.sqrt(room)) + 1
                for x in range(max(wx - half - x0, 0), min(wx + half + 2 - x0, nx)):
                    dz = oz + warp[0, z, y, x]
                    dy = oy + warp[1, z, y, x]
                    dx = np.float32(x + x0 - wx) - fx + warp[2, z, y, x]
                    f = np.float32(math.sqrt(dz * dz + dy * dy + dx * dx)) - weight
                    f1, f2, i1, i2 = near[0, z, y, x], near[1, z, y, x], index[0, z, y, x], index[1, z, y, x]
                    first, second = f < f1, f < f2
                    near[1, z, y, x] = f1 if first else (f if second else f2)
                    index[1, z, y, x] = i1 if first else (np.int32(i) if second else i2)
                    near[0, z, y, x] = f if first else f1
                    index[0, z, y, x] = np.int32(i) if first else i1


@_jit
def _speckle(key, low, high, pitch, diameter, debris, planar, step, z0, y0, x0, out):  # type: ignore[no-untyped-def]
    """Add pieces of debris, small bright blobs, to ``out``."""
    nz, ny, nx = out.shape
    out[:] = 0
    if debris <= 0:
        return
    for iz in range(low[0], high[0]):
        for iy in range(low[1], high[1]):
            for ix in range(low[2], high[2]):
                bits = _hash(_next(key, 4), iz, iy, ix)
                if _unit(bits) >= debris:
                    continue
                cz = 0.0 if planar else (iz + _unit(_next(bits, 0))) * pitch
                cy, cx = (iy + _unit(_next(bits, 1))) * pitch, (ix + _unit(_next(bits, 2))) * pitch
                radius = max(diameter * (0.05 + 0.1 * _unit(_next(bits, 3))), 1.5)
                bright = np.float32(0.4 + 1.2 * _unit(_next(bits, 4)))
                half = np.int64(radius) + 1
                wy, wx = np.int64(math.floor(cy)), np.int64(math.floor(cx))
                for z in range(nz):
                    oz = (z + z0) * step - cz
                    if abs(oz) >= radius:
                        continue
                    for y in range(max(wy - half - y0, 0), min(wy + half + 2 - y0, ny)):
                        for x in range(max(wx - half - x0, 0), min(wx + half + 2 - x0, nx)):
                            oy, ox = y + y0 - cy, x + x0 - cx
                            q = 1.0 - (oz * oz + oy * oy + ox * ox) / (radius * radius)
                            if q > 0:
                                out[z, y, x] += bright * np.float32(q * q)


@_jit
def _normal(bits):  # type: ignore[no-untyped-def]
    """Return an almost normal number: the sum of four uniform ones of 16 bits."""
    m = np.uint64(0xFFFF)
    total = (bits & m) + (bits >> np.uint64(16) & m) + (bits >> np.uint64(32) & m) + (bits >> np.uint64(48))
    return (np.float32(total) - np.float32(131070.0)) * np.float32(1.0 / 37836.9)


@_jit
def _count(light, bits, noise):  # type: ignore[no-untyped-def]
    """Return what the camera counts: shot noise, read noise, offset, 16 bits."""
    spread = np.float32(math.sqrt(np.float32(_GAIN) * light + np.float32(_READ * _READ)))
    value = light + np.float32(_OFFSET) + noise * spread * _normal(bits) + np.float32(0.5)
    return np.uint16(min(max(value, np.float32(0)), np.float32(65535)))


@_jit
def _nucleus(table, count, i, dz, dy, dx):  # type: ignore[no-untyped-def]
    """Return the depth below the border of the nucleus that is nearest, and its number."""
    depth, number = np.float32(-1e9), 0
    for k in range(count[i]):
        at = _NUCLEI + k * _NUCLEUS
        oz, oy, ox = dz - table[i, at], dy - table[i, at + 1], dx - table[i, at + 2]
        u = ox * table[i, at + 6] + oy * table[i, at + 7]
        v = oy * table[i, at + 6] - ox * table[i, at + 7]
        az, ay, ax = table[i, at + 3], table[i, at + 4], table[i, at + 5]
        q = oz * oz / (az * az) + v * v / (ay * ay) + u * u / (ax * ax)
        if q < np.float32(9):
            d = (np.float32(1) - np.float32(math.sqrt(q))) * ay
            if d > depth:
                depth, number = d, k
    return depth, number


@_jit
def _names(low, high, grid_low, grid_shape):  # type: ignore[no-untyped-def]
    """Return the cells' ids: positions in the grid of the whole image."""
    nz, ny, nx = high[0] - low[0], high[1] - low[1], high[2] - low[2]
    names = np.empty(nz * ny * nx, np.uint64)
    for i in range(names.size):
        a = low[0] + i // (ny * nx) - grid_low[0]
        b = low[1] + i // nx % ny - grid_low[1]
        c = low[2] + i % nx - grid_low[2]
        names[i] = np.uint64(((a * grid_shape[1] + b) * grid_shape[2] + c) * MAX_NUCLEI + 1)
    return names


@_jit
def _paint(  # type: ignore[no-untyped-def]
    key, at, origin, whole, table, count, loose, names, near, index, warp, fields, gap, depth, extent, uneven,
    noise, blur, step, image, nuclei, cells,
):  # fmt: skip
    """Write the pixels of one tile, which lies ``at`` in the outputs and at ``origin`` in the whole image."""
    z0, y0, x0 = at
    oz, oy, ox = origin
    shape = near.shape[1:]
    for z in range(shape[0]):
        for y in range(shape[1]):
            row = _next(_next(key, oz + z), oy + y)
            for x in range(shape[2]):
                f1, f2 = near[0, z, y, x], near[1, z, y, x]
                i1, i2 = index[0, z, y, x], index[1, z, y, x]
                # how deep the pixel lies inside its cell; not followed beyond `depth`
                inside, beside, share = min(extent - f1, depth), depth, np.float32(0)
                apart = f2 - f1
                if apart < gap + 2 * depth:
                    share = np.float32(0.5) - apart / (np.float32(2) * (gap + 2 * depth))
                    if loose[i1]:
                        if not loose[i2] and f2 < extent:
                            beside = np.float32(0.5) * apart
                        apart -= gap
                    inside = min(inside, np.float32(0.5) * apart)
                below, number = np.float32(-1e9), 0
                if inside > 0:
                    dz = np.float32((oz + z) * step - whole[i1, 0]) - table[i1, 0] + warp[0, z, y, x]
                    dy = np.float32(oy + y - whole[i1, 1]) - table[i1, 1] + warp[1, z, y, x]
                    dx = np.float32(ox + x - whole[i1, 2]) - table[i1, 2] + warp[2, z, y, x]
                    below, number = _nucleus(table, count, i1, dz, dy, dx)
                    below = min(below, inside - np.float32(1))
                if cells.size:
                    cells[z0 + z, y0 + y, x0 + x] = names[i1] if inside > 0 else np.uint64(0)
                if nuclei.size:
                    name = names[i1] + np.uint64(number) if below > 0 else np.uint64(0)
                    nuclei[z0 + z, y0 + y, x0 + x] = name
                if not image.shape[0]:
                    continue
                light = np.float32(1) - np.float32(uneven) * fields[4, z, y, x]
                haze = fields[3, z, y, x]
                speck = fields[5, z, y, x]
                stain = np.float32(0.015) + np.float32(0.05) * haze + speck
                if below > -blur:
                    edge = _smooth((below + blur) / np.float32(2 * blur))
                    grain = np.float32(0.55) + np.float32(0.9) * fields[0, z, y, x]
                    stain += table[i1, _AMP] * edge * grain
                bits = _next(row, 2 * (ox + x))
                image[0, z0 + z, y0 + y, x0 + x] = _count(light * stain * np.float32(_DAPI), bits, np.float32(noise))
                if image.shape[0] < 2:
                    continue
                stain = np.float32(0.02) + np.float32(0.06) * haze + np.float32(0.3) * speck
                if inside > -depth or beside < depth:
                    t = min(abs(inside), beside) / depth
                    ridge = np.float32(1) - t * t
                    wall = ridge * ridge * (np.float32(0.45) + np.float32(0.8) * fields[2, z, y, x])
                    edge = _smooth((inside + blur) / np.float32(2 * blur))
                    if below > 0:
                        edge *= np.float32(0.55)
                    grain = fields[1, z, y, x]
                    body = edge * (np.float32(0.07) + np.float32(0.5) * grain * grain * grain)
                    other = table[i2, _AMP + 1] if share > 0 else np.float32(0)
                    amount = table[i1, _AMP + 1] * (np.float32(1) - share) + other * share
                    stain += amount * (wall + body)
                bits = _next(row, 2 * (ox + x) + 1)
                image[1, z0 + z, y0 + y, x0 + x] = _count(light * stain * np.float32(_WGA), bits, np.float32(noise))


@_jit
def render(  # type: ignore[no-untyped-def]
    key, grid_low, grid_shape, start, pitch, diameter, density, touching, several, none, debris, uneven,
    noise, blur, step, planar, image, nuclei, cells,
):  # fmt: skip
    """Fill the box at ``start`` (z, y, x); an output with no pixels (``size == 0``) is left out.

    Parameters
    ----------
    grid_low, grid_shape
        The first site of the whole image and the number of sites, (z, y, x): what ids are counted from.
    image
        ``(c, z, y, x)`` uint16; c is 0, 1 or 2.
    nuclei, cells
        ``(z, y, x)`` unsigned: the truth.
    """
    size_z, size_y, size_x = cells.shape if cells.size else (nuclei.shape if nuclei.size else image.shape[1:])
    gap = np.float32(_gap(diameter))
    depth = np.float32(2 * blur + 1)
    extent = np.float32(_EXTENT * diameter)
    bend = np.float32(2 * _WARP * diameter)
    reach = reach_of(diameter, blur)
    tall, wide = (_TILE[0], _TILE[1]) if planar else (32, 128)
    deep = 1 if planar else 1 + int(15 / step)
    for z0 in range(0, size_z, deep):
        for y0 in range(0, size_y, tall):
            for x0 in range(0, size_x, wide):
                shape = (min(deep, size_z - z0), min(tall, size_y - y0), min(wide, size_x - x0))
                oz, oy, ox = start[0] + z0, start[1] + y0, start[2] + x0
                low = np.empty(3, np.int64)
                high = np.empty(3, np.int64)
                for k, (o, n, s) in enumerate(((oz, shape[0], step), (oy, shape[1], 1.0), (ox, shape[2], 1.0))):
                    low[k], high[k] = _window(o, n, s, reach, pitch)
                if planar:
                    low[0], high[0] = 0, 1
                held, whole, table, count, loose = _sites(
                    key, low, high, pitch, diameter, density, touching, several, none, planar
                )
                warp = np.zeros((3, *shape), np.float32)
                for k in range(1 if planar else 0, 3):
                    _field(_next(key, 50 + k), 0.45 * diameter, step, oz, oy, ox, warp[k])
                    warp[k] = (warp[k] - np.float32(0.5)) * bend
                near = np.empty((2, *shape), np.float32)
                index = np.empty((2, *shape), np.int32)
                _splat(held, whole, table, reach, step, oz, oy, ox, warp, near, index)
                fields = np.empty((6 if image.shape[0] else 0, *shape), np.float32)
                if image.shape[0]:
                    _field(_next(key, 60), max(diameter / 7, 1.5), step, oz, oy, ox, fields[0])
                    _field(_next(key, 61), max(diameter / 9, 1.5), step, oz, oy, ox, fields[1])
                    _field(_next(key, 62), 0.6 * diameter, step, oz, oy, ox, fields[2])
                    _field(_next(key, 63), 3.0 * diameter, step, oz, oy, ox, fields[3])
                    _field(_next(key, 64), 40.0 * diameter, step, oz, oy, ox, fields[4])
                    _speckle(key, low, high, pitch, diameter, debris, planar, step, oz, oy, ox, fields[5])
                names = _names(low, high, grid_low, grid_shape)
                _paint(
                    _next(key, 6), (z0, y0, x0), (oz, oy, ox), whole, table, count, loose, names, near, index,
                    warp, fields, gap, depth, extent, uneven, noise, blur, step, image, nuclei, cells,
                )  # fmt: skip
