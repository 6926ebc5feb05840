"""Methods, and the contract that they keep."""
