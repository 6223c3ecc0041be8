"""One door per heavy library, a file or a few: build, load and run the networks that Crest trains."""
