"""A blind survey of people: export a page, tally the answers."""
