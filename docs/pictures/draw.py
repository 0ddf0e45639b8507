"""stub"""


def pictures() -> dict[str, str]:
    """None yet."""
    return {}
