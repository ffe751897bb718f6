"""The learned denoiser: training noise, the EDM network, its training step, checkpoints, sampling."""
