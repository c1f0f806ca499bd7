"""A little world of posts, summaries and preferences whose annotators' true taste is known."""
