"""Pictures: files to tensors and back, from hosts' arrays, in labelled grids, as curves."""
