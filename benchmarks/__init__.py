"""Side-by-side measurements of Crest against the upstream code, one file each."""
