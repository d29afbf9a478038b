"""Records of one size under keys, in a file that survives a killed process."""

import os
import struct
import zlib

# key, crc of the record, crc of the two and of the position
ENTRY = struct.Struct("<16sII")


class RecordFile:
    """Append-only records, with an index of (key, crc of record, crc of entry).

    Entry n of the index describes record n of the data. Data is written before its
    entry, so that whatever moment a process is killed at, what the index names is
    there. What a broken machine may leave all the same (an entry whose data never
    reached the disk, changed bytes) does not match its crc.

    Opening cuts off what is torn or invalid at the end of both files. An invalid
    entry before that is passed over. Where a key comes twice, the last one counts.

    Args:
        data: raw binary file, open for reading and writing.
        index: the same, or None for an index in memory alone.
        size: bytes of a record.
    """

    def __init__(self, data, index, size):
        self._data, self._index, self.size = data, index, size
        self._slots, self._count = {}, 0
        self._verified = set()
        if index is not None:
            self._load()

    def __len__(self):
        return len(self._slots)

    def __contains__(self, key):
        return key in self._slots

    def keys(self):
        """View of the keys."""
        return self._slots.keys()

    def read_into(self, key, buffer):
        """Fill `buffer` with the record of `key`.

        Returns:
            Whether that went well. If not (no such key, a file that cannot be
            read, a record that does not match its crc), the key is forgotten.
        """
        if key not in self._slots:
            return False
        slot, crc = self._slots[key]
        view = memoryview(buffer).cast("B")
        try:
            self._data.seek(slot * self.size)
            done = 0
            while done < self.size:
                read = self._data.readinto(view[done:])
                if not read:
                    break
                done += read
            whole = done == self.size
        except OSError:
            whole = False
        if whole and key not in self._verified:
            whole = zlib.crc32(view) == crc
            self._verified.add(key)
        if not whole:
            del self._slots[key]
            self._verified.discard(key)
        return whole

    def append(self, keys, records):
        """Write records, data first.

        Args:
            keys: list of 16 bytes each.
            records: contiguous array, one row a record.

        Raises:
            OSError: where they cannot be written, a full disk for one. Then none
                of them is in the file, and the file is as sound as before.
        """
        entries, slots = [], {}
        for i, key in enumerate(keys):
            slot = self._count + i
            crc = zlib.crc32(records[i]) if self._index is not None else 0
            entries.append(ENTRY.pack(key, crc, _check(key, crc, slot)))
            slots[key] = slot, crc
        try:
            _write(self._data, self._count * self.size, memoryview(records).cast("B"))
            if self._index is not None:
                _write(self._index, self._count * ENTRY.size, b"".join(entries))
        except BaseException:
            self._cut()
            raise
        self._count += len(keys)
        self._slots.update(slots)
        self._verified.update(keys)

    def close(self):
        """Wait for the disk, and close the files."""
        try:
            if self._index is not None:
                os.fsync(self._data.fileno())
                os.fsync(self._index.fileno())
        except OSError:
            pass  # a crc tells what is missing
        finally:
            self._data.close()
            if self._index is not None:
                self._index.close()

    def _load(self):
        self._index.seek(0)
        raw = self._index.readall()
        complete = self._data.seek(0, os.SEEK_END) // self.size
        for slot in range(min(len(raw) // ENTRY.size, complete)):
            key, crc, check = ENTRY.unpack_from(raw, slot * ENTRY.size)
            if check == _check(key, crc, slot):
                self._slots[key] = slot, crc
                self._count = slot + 1
        self._cut(strict=True)

    def _cut(self, strict=False):
        """Remove what is behind the last whole record."""
        ends = [(self._index, ENTRY.size), (self._data, self.size)]
        for file, size in ends:
            if file is not None:
                try:
                    file.truncate(self._count * size)
                except OSError:
                    if strict:
                        raise


def _check(key, crc, slot):
    return zlib.crc32(struct.pack("<16sIQ", key, crc, slot))


def _write(file, position, data):
    file.seek(position)
    view, done = memoryview(data), 0
    while done < len(view):  # a full disk takes a part, then fails
        done += file.write(view[done:])
