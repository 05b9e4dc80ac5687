"""Images, faces and subjects as training samples and references."""
