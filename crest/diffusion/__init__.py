"""Gaussian diffusion as pure functions, without networks: schedules, predictions, losses, samplers."""
