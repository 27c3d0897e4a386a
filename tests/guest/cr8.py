"""Run inside an emulated stand-in before kvm_amd is loaded: has it intercept every write to CR8, which is only slower.

QEMU 7.2 aborts, as it does not hold a lock of its own, when a guest under its SVM writes CR8 while a virtual interrupt
is pending; UEFI firmware does so at the end of each interrupt. KVM begins with that intercept and takes it away in
`svm_update_cr8_intercept`, whose first instruction becomes a return here, in the module's file on this machine's disk.
The signature behind the module goes, as it would no longer fit.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

FUNCTION = b"svm_update_cr8_intercept"
MAGIC = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(">8xI")  # what it is, and its length
_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, link, info, alignment, entry size
_SYMBOL = struct.Struct("<IBBHQQ")  # name, info, other, section, value, size
_SYMBOL_TABLE = 2
_ENDBR64, _CALL, _CALL_BYTES, _RETURN = bytes.fromhex("f30f1efa"), 0xE8, 5, 0xC3


def unsigned(module: bytes) -> bytes:
    """`module` without a signature behind it."""
    if not module.endswith(MAGIC):
        return module
    end = len(module) - len(MAGIC) - _SIGNATURE.size
    (length,) = _SIGNATURE.unpack_from(module, end)
    return module[: end - length]


def function_offset(module: bytes, wanted: bytes) -> int:
    """Where in the ELF object `module` the code of the function `wanted` begins."""
    (at,), (size, number) = struct.unpack_from("<Q", module, 0x28), struct.unpack_from("<HH", module, 0x3A)
    sections = [_SECTION.unpack_from(module, at + index * size) for index in range(number)]
    for name, section, value in _symbols(module, sections):
        if name == wanted:
            return int(sections[section][4]) + value
    raise LookupError(f"no function {wanted.decode()}")


def _symbols(module: bytes, sections: list[tuple[int, ...]]) -> Iterator[tuple[bytes, int, int]]:
    table = next(section for section in sections if section[1] == _SYMBOL_TABLE)
    names = sections[table[6]][4]
    for at in range(table[4], table[4] + table[5], _SYMBOL.size):
        name, _, _, section, value, _ = _SYMBOL.unpack_from(module, at)
        yield module[names + name : module.index(b"\0", names + name)], section, value


def returning(module: bytes, function: bytes = FUNCTION) -> bytes:
    """`module` with a `function` that returns at once, behind the call at its entry that belongs to ftrace."""
    at = function_offset(module, function)
    at += len(_ENDBR64) if module[at:].startswith(_ENDBR64) else 0
    at += _CALL_BYTES if module[at] == _CALL else 0
    return module[:at] + bytes([_RETURN]) + module[at + 1 :]


def main() -> None:
    found = subprocess.run(["modinfo", "-n", "kvm_amd"], check=True, capture_output=True, text=True)
    path = Path(found.stdout.strip())
    path.write_bytes(returning(unsigned(path.read_bytes())))


if __name__ == "__main__":
    main()
