"""What a toolstack runs per device."""
