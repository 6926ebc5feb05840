"""How shards are run: dask graphs, the scratch store, resume, devices, memory, events."""
