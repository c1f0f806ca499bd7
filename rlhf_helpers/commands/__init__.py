"""The commands of `python -m rlhf_helpers`, one module each; `main` puts them together."""
