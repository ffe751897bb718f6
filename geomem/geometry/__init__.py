"""What a data set says about memorization before any network is trained."""
