"""Drawing: guidance over base and subjects, samplers, and the pictures."""
