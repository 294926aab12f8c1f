from nsk.chain import Generation  # ALIAS  # noqa: F401
