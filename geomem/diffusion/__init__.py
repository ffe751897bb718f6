"""The learned denoiser: noise schedules, the EDM network, training, checkpoints and sampling."""
