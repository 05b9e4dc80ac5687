"""The mathematics: pure functions over tensors, no modules, files or globals."""
