"""A little world in which the annotators' true taste is known: posts, summaries, preferences."""
