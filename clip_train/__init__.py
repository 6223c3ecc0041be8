"""Fine-tune an OpenCLIP model on logos and embed them for the later stages."""
