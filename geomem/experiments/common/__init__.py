"""What the commands share. Invalid input raises ValueErrors, which `command_line` prints."""
