"""The learned denoiser: training noise, the EDM network and its training step, sampling."""
