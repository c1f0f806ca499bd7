"""Judgements of people, rules and models: collecting them, and how well judges agree."""
