"""Manifests: fingerprints, and files that show any change to themselves."""

import json

import pytest

from nsk.errors import UserError
from nsk.store import manifest
from nsk.store.manifest import FORMAT, MANIFEST, fingerprint, read_manifest, write_json

CONTENT = {"stage": "gen1/scores", "settings": {"seed": 1}, "counts": {"images": 3}}


def test_fingerprint_depends_on_everything_but_the_order_of_settings():
    settings = {"seed": 0, "model": {"depth": 20, "rate": 0.5}, "operations": ["rotate", "invert"]}
    inputs = {"teacher": "0123456789"}
    base = fingerprint("gen1/scores", settings, inputs)
    assert len(base) == 10 and int(base, 16) >= 0

    reordered = {
        "operations": ["rotate", "invert"],
        "model": {"rate": 0.5, "depth": 20},
        "seed": 0,
    }
    assert fingerprint("gen1/scores", reordered, inputs) == base

    changed = [
        fingerprint("gen2/scores", settings, inputs),
        fingerprint("gen1/scores", settings | {"seed": 1}, inputs),
        fingerprint("gen1/scores", settings | {"model": {"depth": 26, "rate": 0.5}}, inputs),
        fingerprint("gen1/scores", settings | {"operations": ["invert", "rotate"]}, inputs),
        fingerprint("gen1/scores", settings | {"new": None}, inputs),
        fingerprint("gen1/scores", settings, {"teacher": "9876543210"}),
        fingerprint("gen1/scores", settings, {"images": "0123456789"}),
        fingerprint("gen1/scores", settings, {}),
    ]
    assert len({base, *changed}) == 1 + len(changed)


def test_fingerprint_depends_on_the_format(monkeypatch):
    base = fingerprint("gen1/scores", {}, {})
    monkeypatch.setattr(manifest, "FORMAT", FORMAT + 1)
    assert fingerprint("gen1/scores", {}, {}) != base


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    manifest.write_manifest(tmp_path, CONTENT)
    read = read_manifest(tmp_path)
    assert read.pop("format") == FORMAT and len(read.pop("seal")) == 64
    assert read == CONTENT


def test_every_change_to_a_manifest_is_detected(tmp_path):
    manifest.write_manifest(tmp_path, CONTENT)
    path = tmp_path / MANIFEST
    text = path.read_text()
    for name in ("settings", "counts"):
        values = json.loads(text)
        values[name] = {}
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match=r"is damaged \(it was changed after it was written\)"):
            read_manifest(tmp_path)
    path.write_text(text.replace(" ", "  "))  # Spaces are not content.
    assert read_manifest(tmp_path)["counts"] == {"images": 3}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"text"', "{}", '{"fingerprint": "0"}', "\xff\xfe", "[" * 9999]
)
def test_a_damaged_manifest_is_a_user_error(tmp_path, text):
    (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"stage\.json is damaged .*delete the folder") as error:
        read_manifest(tmp_path)
    assert "\n" not in str(error.value)


def test_a_manifest_that_is_not_a_file_is_a_user_error(tmp_path):
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(UserError, match=r"is damaged \(it is not a file\)"):
        read_manifest(tmp_path)


def test_a_missing_manifest_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"not a finished stage.*stage\.json: delete the folder"):
        read_manifest(tmp_path)


def test_a_manifest_of_another_format_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", FORMAT - 1)
    manifest.write_manifest(tmp_path, CONTENT)
    monkeypatch.undo()
    expected = rf"written by another version of nsk \(format {FORMAT - 1}, expected {FORMAT}\)"
    with pytest.raises(UserError, match=expected):
        read_manifest(tmp_path)


def test_write_json_replaces_the_file_at_once_and_leaves_no_other(tmp_path):
    write_json(tmp_path / "summary.json", {"a": 1})
    write_json(tmp_path / "summary.json", {"a": 2})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 2}
    with pytest.raises(TypeError):
        write_json(tmp_path / "summary.json", {"a": object()})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
