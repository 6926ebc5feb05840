"""Images in files: the pixels that were written, whichever form the file has, and only the tiles that are asked for."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from spatialdata.models import Image2DModel

from spatialdata_segment import read_image
from spatialdata_segment._images import image_type_of
from spatialdata_segment.errors import InputError, MissingError

PIXELS = np.random.default_rng(0).integers(0, 60_000, (3, 100, 130), dtype=np.uint16)
PIXELS.flags.writeable = False
GREY, RGB = PIXELS[:1], (PIXELS // 256).astype(np.uint8)


def agrees(path, expected, **options):
    """Return the facts of an image, once its pixels are those expected."""
    image, facts = read_image(path, **options)
    assert image.dims == ("c", "y", "x")
    assert image.dtype == expected.dtype
    assert image.dtype.isnative
    assert np.array_equal(image.values, expected)
    assert tuple(image.coords["c"].values) == facts.channels
    return facts


WRITTEN = {
    "tiles": ({"tile": (16, 32)}, False),
    "tiles, deflate": ({"tile": (16, 32), "compression": "zlib", "predictor": True}, False),
    "tiles, LZW": ({"tile": (48, 48), "compression": "lzw"}, False),
    "strips": ({"rowsperstrip": 7, "compression": "zlib"}, False),
    "one strip": ({"compression": "zlib"}, False),
    "uncompressed": ({}, False),
    "BigTIFF": ({"bigtiff": True, "byteorder": ">"}, False),
    "big-endian tiles": ({"bigtiff": True, "byteorder": ">", "tile": (16, 16)}, False),
    "OME": ({"ome": True, "metadata": {"axes": "CYX"}}, False),
    "OME tiles": ({"ome": True, "tile": (32, 32), "metadata": {"axes": "CYX"}}, False),
    "ImageJ": ({"imagej": True, "metadata": {"axes": "CYX"}}, False),
    "planes of colours": ({"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16)}, False),
    "samples": ({"photometric": "rgb", "compression": "zlib"}, True),
    "tiles of samples": ({"photometric": "rgb", "tile": (16, 16)}, True),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_tiff(tmp_path, how):
    options, last = WRITTEN[how]
    written = np.moveaxis(PIXELS, 0, -1) if last else PIXELS
    tifffile.imwrite(tmp_path / "a.tif", written, **{"photometric": "minisblack"} | options)
    facts = agrees(tmp_path / "a.tif", PIXELS)
    assert facts.channels == (("R", "G", "B") if "rgb" in options.values() else ("0", "1", "2"))
    assert facts.pixel_size is None
    assert (facts.page, facts.n_pages) == (None, 1)


def test_tiff_of_one_channel_is_an_image_for_spatialdata(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY[0])
    image, _ = read_image(tmp_path / "a.tif")
    assert np.array_equal(Image2DModel.parse(image).values, GREY)


def test_alpha_is_left_out(tmp_path):
    colours = np.moveaxis(RGB, 0, -1)
    with_alpha = np.dstack([colours, np.full(colours.shape[:2], 200, np.uint8)])
    tifffile.imwrite(tmp_path / "a.tif", with_alpha, photometric="rgb", extrasamples=["unassalpha"])
    Image.fromarray(with_alpha).save(tmp_path / "a.png")
    assert agrees(tmp_path / "a.tif", RGB).channels == ("R", "G", "B")
    assert agrees(tmp_path / "a.png", RGB).channels == ("R", "G", "B")


def test_a_pyramid_is_read_at_its_finest_level(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        file.write(PIXELS, subifds=1, tile=(32, 32), metadata={"axes": "CYX"})
        file.write(PIXELS[:, ::2, ::2], subfiletype=1, tile=(32, 32))
    agrees(tmp_path / "a.ome.tif", PIXELS)


def test_names_and_pixel_size_of_ome(tmp_path):
    said = {"axes": "CYX", "PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}
    said["Channel"] = {"Name": ["DAPI", "WGA", "CD3"]}
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, metadata=said)
    facts = agrees(tmp_path / "a.ome.tif", PIXELS)
    assert facts.channels == ("DAPI", "WGA", "CD3")
    assert facts.pixel_size == (0.5, 0.25)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "um"}}, (0.25, 0.5)),
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "pixel"}}, None),
        ({"resolution": (20_000, 40_000), "resolutionunit": "CENTIMETER"}, (0.25, 0.5)),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"resolution": (28, 28), "resolutionunit": "CENTIMETER"}, None),
    ],
)
def test_pixel_size_of_tags(tmp_path, options, expected):
    tifffile.imwrite(tmp_path / "a.tif", GREY[0], **options)
    size = agrees(tmp_path / "a.tif", GREY).pixel_size
    assert size == (None if expected is None else pytest.approx(expected))


def test_pages(tmp_path):
    stack = np.stack([PIXELS, PIXELS[::-1], PIXELS + 1, PIXELS // 2])
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(InputError, match=r"4 planes .*Z 4, C 3.*--page\), 0 to 3"):
        read_image(tmp_path / "a.tif")
    for page in range(4):
        assert agrees(tmp_path / "a.tif", stack[page], page=page).n_pages == 4
    with pytest.raises(InputError, match=r"page=4 is not in .*0 to 3"):
        read_image(tmp_path / "a.tif", page=4)


def test_pages_without_a_name_are_channels_unless_one_is_picked(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="minisblack")
    agrees(tmp_path / "a.tif", PIXELS)
    agrees(tmp_path / "a.tif", PIXELS[1:2], page=1)


def test_pages_of_several_series(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for plane in PIXELS[:2]:
            file.write(plane, contiguous=False)
        file.write(PIXELS[2, :20, :30], contiguous=False)
    with pytest.raises(InputError, match="2 planes"):
        read_image(tmp_path / "a.tif")
    agrees(tmp_path / "a.tif", PIXELS[1:2], page=1)
    agrees(tmp_path / "a.tif", PIXELS[2:, :20, :30], page=2)


def test_channel_last(tmp_path):
    last = np.moveaxis(PIXELS[:2], 0, -1)
    tifffile.imwrite(tmp_path / "a.tif", last)
    zarr.save_array(tmp_path / "a.zarr", last)
    for name in ("a.tif", "a.zarr"):
        agrees(tmp_path / name, PIXELS[:2], channel_last=True)
    tifffile.imwrite(tmp_path / "b.tif", GREY[0])
    with pytest.raises(InputError, match="no axis is left for channels"):
        read_image(tmp_path / "b.tif", channel_last=True)


@pytest.mark.parametrize("channels_last", [False, True])
def test_only_the_tiles_around_a_box_are_read(tmp_path, channels_last):
    """All tiles beyond the 512 x 512 px in which the box lies are spoilt: what reads them fails."""
    side, tile = 1024, 32
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (side, side, 3) if channels_last else (2, side, side), dtype=np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, pixels, tile=(tile, tile), compression="zlib", photometric="rgb" if channels_last else "minisblack"
    )
    pixels = np.moveaxis(pixels, -1, 0) if channels_last else pixels
    rows, columns = slice(520, 600), slice(256, 300)
    with tifffile.TiffFile(path) as tif:
        kept = {(y, x) for y in range(512 // tile, side // tile) for x in range(512 // tile)}
        spoilt = [
            (page.dataoffsets[i], page.databytecounts[i])
            for page in tif.pages
            for i in range(len(page.dataoffsets))
            if divmod(i, side // tile) not in kept
        ]
    with path.open("r+b") as file:
        for offset, count in spoilt:
            file.seek(offset)
            file.write(b"\xff" * count)
    image, facts = read_image(path)
    assert facts.is_tiled
    assert np.array_equal(image[:, rows, columns].values, pixels[:, rows, columns])
    with pytest.raises(InputError, match=r"a.tif cannot be decoded"):
        image.values  # noqa: B018


@pytest.mark.parametrize("form", [2, 3])
def test_zarr_arrays(tmp_path, form):
    zarr.create_array(tmp_path / "a.zarr", data=PIXELS, chunks=(1, 40, 50), zarr_format=form)
    agrees(tmp_path / "a.zarr", PIXELS)
    agrees(tmp_path / "a.zarr", PIXELS[2:], page=2)
    zarr.create_group(tmp_path / "b.zarr", zarr_format=form).create_array("only", data=GREY[0])
    agrees(tmp_path / "b.zarr", GREY)


def test_named_axes_of_a_zarr_array(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=np.moveaxis(PIXELS, 0, -1), dimension_names=("y", "x", "c"))
    assert agrees(tmp_path / "a.zarr", PIXELS).axes == "YXC"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path, version):
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2 if version == "0.4" else 3)
    group.create_array("s0", data=PIXELS[None, :, None], chunks=(1, 1, 1, 64, 64))
    group.create_array("s1", data=PIXELS[None, :, None, ::2, ::2])
    units = {"y": "micrometer", "x": "nanometer", "z": "micrometer"}
    axes = [{"name": a, "type": "space"} | ({"unit": units[a]} if a in units else {}) for a in "tczyx"]
    scales = [{"type": "scale", "scale": [1, 1, 2, 0.5, 250]}], [{"type": "scale", "scale": [1, 1, 2, 1, 500]}]
    sets = [{"path": f"s{k}", "coordinateTransformations": s} for k, s in enumerate(scales)]
    said = {"multiscales": [{"version": version, "axes": axes, "datasets": sets}]}
    said["omero"] = {"channels": [{"label": name} for name in ("DAPI", "WGA", "CD3")]}
    group.attrs.update(said if version == "0.4" else {"ome": {"version": version, **said}})
    facts = agrees(tmp_path / "a.zarr", PIXELS)
    assert facts.channels == ("DAPI", "WGA", "CD3")
    assert facts.pixel_size == (0.5, 0.25)


def test_an_image_of_a_spatialdata_store(tmp_path):
    import spatialdata as sd

    image = Image2DModel.parse(PIXELS, dims=("c", "y", "x"), c_coords=["a", "b", "c"])
    sd.SpatialData(images={"mine": image}).write(tmp_path / "a.zarr")
    assert agrees(tmp_path / "a.zarr/images/mine", PIXELS).channels == ("a", "b", "c")
    with pytest.raises(InputError, match="is a SpatialData store: take `spatialdata-segment run"):
        read_image(tmp_path / "a.zarr")


def test_pictures(tmp_path):
    Image.fromarray(RGB[0]).save(tmp_path / "grey.png")
    agrees(tmp_path / "grey.png", RGB[:1])
    Image.fromarray(GREY[0]).save(tmp_path / "deep.png")
    agrees(tmp_path / "deep.png", GREY)
    Image.fromarray(np.moveaxis(RGB, 0, -1)).save(tmp_path / "rgb.png")
    assert agrees(tmp_path / "rgb.png", RGB, image_type="cv2").image_type == "image"
    Image.fromarray(np.dstack([RGB[0]] * 3)).save(tmp_path / "grey_as_rgb.png")
    agrees(tmp_path / "grey_as_rgb.png", RGB[:1])


def test_colours_of_16_bits(tmp_path):
    import imagecodecs

    colours = np.ascontiguousarray(np.moveaxis(PIXELS, 0, -1))
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(colours))
    agrees(tmp_path / "deep.png", PIXELS)


def test_jpeg(tmp_path):
    smooth = np.tile(np.arange(0, 250, 2, dtype=np.uint8), (100, 1))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    image, facts = read_image(tmp_path / "a.jpg")
    assert facts.channels == ("0",)
    assert abs(image.values[0].astype(int) - smooth).max() <= 2


def test_types_by_content(tmp_path):
    tifffile.imwrite(tmp_path / "a.dat", GREY[0])
    assert image_type_of(tmp_path / "a.dat") == "tiff"
    Image.fromarray(RGB[0]).save(tmp_path / "b.tif", format="png")
    assert image_type_of(tmp_path / "b.tif") == "image"
    agrees(tmp_path / "b.tif", RGB[:1])
    with pytest.raises(InputError, match="cannot be read as a TIFF"):
        read_image(tmp_path / "b.tif", image_type="tiff")


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bool", "uint8"), ("float16", "float32"), ("float64", "float64"), ("int8", "int8")]
)
def test_dtypes(tmp_path, dtype, expected):
    values = (PIXELS % 2).astype(dtype)
    zarr.create_array(tmp_path / "a.zarr", data=values)
    agrees(tmp_path / "a.zarr", values.astype(expected))


def test_what_is_no_image_is_told(tmp_path):
    with pytest.raises(MissingError, match=r"there is no image .*nowhere.tif: check the path"):
        read_image(tmp_path / "nowhere.tif")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(InputError, match=r"text.txt is no image that is known: expected a TIFF"):
        read_image(tmp_path / "text.txt")
    with pytest.raises(InputError, match=r"is a folder and no Zarr.*--image-dir"):
        read_image(tmp_path)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(30))
    with pytest.raises(InputError, match=r"a\.tif"):
        read_image(tmp_path / "a.tif")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    with pytest.raises(InputError, match=r"a.png cannot be read as a picture.*Expected a PNG or a JPEG"):
        read_image(tmp_path / "a.png")
    zarr.create_array(tmp_path / "a.zarr", data=PIXELS[0, 0])
    with pytest.raises(InputError, match=r"axes Q \(130,\), expected rows and columns"):
        read_image(tmp_path / "a.zarr")
    with pytest.raises(InputError, match=r"image_type='gif', expected tiff, zarr, cv2 or image"):
        read_image(tmp_path / "a.tif", image_type="gif")
    with pytest.raises(InputError, match="page=-1"):
        read_image(tmp_path / "a.tif", page=-1)
    group = zarr.create_group(tmp_path / "b.zarr")
    group.create_array("one", data=GREY[0])
    group.create_array("two", data=GREY[0])
    with pytest.raises(InputError, match=r"holds one, two: name one"):
        read_image(tmp_path / "b.zarr")
    zarr.create_array(tmp_path / "c.zarr", data=PIXELS[0].astype(complex))
    with pytest.raises(InputError, match="dtype complex128"):
        read_image(tmp_path / "c.zarr")


def test_a_table_of_colours_of_imagej_is_how_intensities_are_shown(tmp_path):
    pixels = np.arange(2 * 20 * 30, dtype=np.uint8).reshape(2, 20, 30)
    said = "ImageJ=1.54f\nimages=2\nchannels=2\nmode=composite\nloop=false\n"
    ramp = np.zeros((3, 256), np.uint16)
    ramp[1] = np.arange(256) * 257
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(pixels[0], photometric="palette", colormap=ramp, description=said, metadata=None, contiguous=False)
        tif.write(pixels[1], photometric="palette", colormap=ramp, metadata=None, contiguous=False)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.is_imagej
        assert tif.pages[0].photometric.name == "PALETTE"
    image, facts = read_image(tmp_path / "a.tif")
    assert facts.axes == "CYX"
    assert np.array_equal(np.asarray(image), pixels)


def test_a_palette_is_told(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", RGB[0], photometric="palette", colormap=np.zeros((3, 256), np.uint16), tile=(16, 16)
    )
    with pytest.raises(InputError, match="palette of colours"):
        read_image(tmp_path / "a.tif")
