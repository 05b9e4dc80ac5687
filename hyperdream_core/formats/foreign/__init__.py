"""Files of other programs: how they name and scale what we read of them."""
