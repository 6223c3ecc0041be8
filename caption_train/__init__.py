"""Fine-tune the captioner, which writes a description for logos that have none."""
