"""The manifest of a finished stage: `stage.json`, written last.

It holds the stage's settings, inputs and counts, and the size and SHA-256 of every file. A seal,
the SHA-256 of its own content, shows changes to the manifest itself.
"""

import json
from pathlib import Path
from typing import Any

from nsk.errors import UserError
from nsk.hashing import sha256_of_bytes
from nsk.store.disk_errors import naming_disk_errors
from nsk.store.files import atomic_write

FORMAT = 6  # Of stage folders; incremented when what stages hold changes.
MANIFEST = "stage.json"


def fingerprint(name: str, settings: dict, inputs: dict[str, str]) -> str:
    """10 hex digits of the SHA-256 of a stage's name, settings and inputs' fingerprints.

    Args:
        name: folder and kind of the stage, such as `gen1/student`.
        settings: JSON-like dict of all settings that the result depends on.
        inputs: fingerprints of the stages that it is built from, by role.
    """
    content = {"format": FORMAT, "stage": name, "settings": settings, "inputs": inputs}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return sha256_of_bytes(text.encode())[:10]


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Writes the manifest of a folder, with its format and seal."""
    content = {"format": FORMAT, **content}
    write_json(folder / MANIFEST, {**content, "seal": _seal(content)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished stage's folder.

    Raises:
        UserError: it is missing, damaged or of another format.
    """
    path = folder / MANIFEST
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")  # Reading a pipe would block.
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{folder} was written by another version of nsk (format {manifest['format']}, "
                f"expected {FORMAT}): use that version, or delete the folder."
            )
        if manifest["seal"] != _seal(manifest):
            raise ValueError("it was changed after it was written")
        return manifest
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a finished stage, it has no {MANIFEST}: delete the folder and run "
            "again to rebuild it."
        ) from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): make it readable, or delete the folder "
            f"{folder} and run again to rebuild it."
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path} is damaged ({reason}): delete the folder {folder} and run again to rebuild it."
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    with naming_disk_errors(path.parent), atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=1) + "\n")


def _seal(manifest):
    """SHA-256 of a manifest without its seal."""
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return sha256_of_bytes(json.dumps(content, sort_keys=True).encode())
