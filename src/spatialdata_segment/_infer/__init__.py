"""`spatialdata-segment infer`: images in files in, outlines in files out; what segments is `segment`."""
