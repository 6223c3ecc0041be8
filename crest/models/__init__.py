"""One door per heavy library: build, load and run the networks that Crest trains."""
