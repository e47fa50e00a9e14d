"""Derive seeds from (seed, epoch, clip), so that results do not depend on the number of workers or their timing."""

import hashlib


def derived_seed(*parts):
    """Return a 63-bit seed that depends only on `parts`; it is the same in every process and on every machine."""
    hashed = hashlib.blake2b("/".join(map(str, parts)).encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(hashed, "little") >> 1


def hash_of(tensors):
    """Return a 63-bit hash of the contents of tensors; it is the same on every machine."""
    return derived_seed(*(hashlib.blake2b(tensor.cpu().numpy().tobytes()).hexdigest() for tensor in tensors))
