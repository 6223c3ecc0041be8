"""Crest: logos from text with the components of DALL-E 2, trained on logos."""
