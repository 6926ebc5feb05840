"""Pure kernels over numpy arrays: no dask, no SpatialData, no files."""
