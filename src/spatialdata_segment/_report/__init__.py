"""The report of a segmentation: one HTML file, with pictures, numbers and how they came about."""
