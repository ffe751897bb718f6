"""Code that experiments share: the command line, data flags, result files, trained arms."""
