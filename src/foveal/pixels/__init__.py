"""The pixel policy: from a file's bytes to the pixels that a model sees. `policy` is the way in."""
