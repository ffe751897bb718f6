"""The FID's Inception network in Flax, and its published weights read without PyTorch."""
