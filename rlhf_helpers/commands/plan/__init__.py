"""The command `plan`: memory, time and money of a scale's stages, before any of it is spent."""
