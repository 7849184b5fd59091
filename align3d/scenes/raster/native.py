"""The C++ rasteriser for the CPU."""


def problem() -> str | None:
    """Why native code cannot be had, or None."""
    return "it is not there yet"
