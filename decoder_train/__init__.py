"""Train the decoder: CLIP image embeddings to pixels."""
