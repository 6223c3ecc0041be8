"""Train the diffusion prior: captions to CLIP image embeddings."""
