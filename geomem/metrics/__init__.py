"""What samples and denoisers are worth: arrays in, numbers out."""
