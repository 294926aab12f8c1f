"""Hashes against fixed values and published ones."""

import hashlib

import numpy as np

from nsk.hashing import hash_keys, sha256_of_bytes, sha256_of_file, stable_key, stable_keys


def test_hash_keys_is_splitmix64_without_collisions():
    # The first output of the published generator from state 0: its finaliser of the increment.
    increment = np.uint64([0x9E3779B97F4A7C15])
    assert hash_keys(increment ^ stable_key("0"), 0)[0] == np.uint64(0xE220A8397B1DCDAF)
    keys = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(hash_keys(keys, 3))) == len(keys)
    assert keys[-1] == 99_999  # The argument is not modified.


def test_stable_keys_never_change():
    # Run folders on disk hold selections that were made with these values.
    assert stable_key("abc") == stable_key(b"abc") == np.uint64(0x5995D533D814BBD8)
    keys = stable_keys(["abc", "xyz"])
    assert keys.dtype == np.uint64 and keys[0] == stable_key("abc") and keys[0] != keys[1]
    assert stable_keys([]).shape == (0,)


def test_sha256_of_files_and_bytes_is_the_standard_one(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert sha256_of_file(tmp_path / "file") == sha256_of_bytes(content) == expected
