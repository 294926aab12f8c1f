"""Stage folders on disk: atomic files, manifests, locks, reuse and verification."""
