"""Durations and sizes in words."""

BYTE_UNITS = ("MiB", "GiB", "TiB", "PiB")


def format_duration(seconds: float) -> str:
    """Formats a duration in seconds as 8.1 s, 3:05 or 2:03:05."""
    if seconds < 59.95:  # At or above this, one digit would show 60.0.
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def format_bytes(number_of_bytes: float) -> str:
    """Formats bytes as 0.3 MiB, 12 MiB or 3.4 TiB."""
    size, units = number_of_bytes / 2**20, list(BYTE_UNITS)
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 10 else f"{size:.1f} {units[0]}"
