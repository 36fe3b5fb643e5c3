# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of one shard on one peer: made, fetched and given back in parts, so that no shard must fit into memory."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import typing as t
import uuid
from dataclasses import dataclass

from .errors import EndpointError, ResilienceError
from .http_client import describe
from .qdrant import Qdrant

#: Bytes that are held at once.
PART = 1 << 20


@dataclass(frozen=True)
class ShardFile:
    """A shard's snapshot on this host's disk."""

    bytes: int
    sha256: str


class ShardSnapshots:
    """The snapshots of one peer.

    :param peer: the peer; its key must be one that may write.
    :param timeout: seconds for making one, and for putting one in place.
    """

    def __init__(self, peer: Qdrant, timeout: float = 600.0) -> None:
        self.peer = peer
        self._timeout = timeout

    def list(self, collection: str, shard: int) -> list[dict[str, t.Any]]:
        """Snapshots of a shard that the peer keeps, each with C(name), C(size), C(creation_time) and C(checksum)."""
        return list(self.peer._result("GET", _path(collection, shard)))

    def delete(self, collection: str, shard: int, name: str) -> None:
        """Remove a snapshot from the peer; one that is gone is no error."""
        response = self.peer._endpoint.request("DELETE", f"{_path(collection, shard)}/{name}", timeout=60)
        if response.status not in (200, 404):
            raise EndpointError(
                self.peer.host,
                self.peer.port,
                f"the snapshot {name} to be deleted",
                f"HTTP {response.status}: {str(response.body)[:200]}",
            )

    def fetch(self, collection: str, shard: int, into: str) -> ShardFile:
        """Make a snapshot, download it to a file, and remove it from the peer.

        :raises ResilienceError: what came is not what the peer made.
        """
        made = self.peer._result("POST", f"{_path(collection, shard)}?wait=true", timeout=self._timeout)
        name = str(made["name"])
        try:
            got = self._download(f"{_path(collection, shard)}/{name}", into)
            wanted = made.get("checksum")
            if got.bytes != int(made["size"]) or (wanted and got.sha256 != wanted):
                raise ResilienceError(
                    f"{self.peer.host}:{self.peer.port}: the snapshot of {collection}, shard {shard}, came damaged: "
                    f"{got.bytes} bytes with SHA-256 {got.sha256}, not {made['size']} with {wanted}. Run it again; "
                    "look at that host's disk if it happens twice."
                )
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(into)
            raise
        finally:
            with contextlib.suppress(ResilienceError):  # the next run removes what is left
                self.delete(collection, shard, name)
        return got

    def put(self, collection: str, shard: int, path: str, sha256: str) -> None:
        """Have the peer take a shard's content from a file; its other copies then follow it, whatever they hold.

        The checksum is compared by the peer before it touches the shard: without one it takes a damaged file.
        """
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="snapshot"; filename="shard.snapshot"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        url = f"{_path(collection, shard)}/upload?priority=snapshot&wait=true&checksum={sha256}"

        def parts(handle: t.BinaryIO) -> t.Iterator[bytes]:
            yield head
            while part := handle.read(PART):
                yield part
            yield tail

        with open(path, "rb") as handle:
            headers = {
                **self.peer._endpoint.headers,
                "Content-Type": f"multipart/form-data; boundary={boundary}",
                "Content-Length": str(len(head) + os.fstat(handle.fileno()).st_size + len(tail)),
            }
            with self._connected("POST", url) as connection:
                connection.request("POST", url, body=parts(handle), headers=headers)
                answer = connection.getresponse()
                raw = answer.read()
        if answer.status != 200:
            raise EndpointError(
                self.peer.host,
                self.peer.port,
                f"shard {shard} of {collection} to be restored from {path}",
                f"HTTP {answer.status}: {_said(raw)}",
                "Nothing of this file is taken for whole; verify it against its manifest and take another backup if "
                "it is damaged",
            )

    def _download(self, url: str, into: str) -> ShardFile:
        digest, size = hashlib.sha256(), 0
        with self._connected("GET", url) as connection, open(into, "wb") as handle:
            connection.request("GET", url, headers=self.peer._endpoint.headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise EndpointError(
                    self.peer.host, self.peer.port, f"the file {url}", f"HTTP {answer.status}: {_said(answer.read())}"
                )
            while part := answer.read(PART):
                digest.update(part)
                size += len(part)
                handle.write(part)
            handle.flush()
            os.fsync(handle.fileno())
        return ShardFile(size, digest.hexdigest())

    @contextlib.contextmanager
    def _connected(self, method: str, url: str) -> t.Iterator[http.client.HTTPConnection]:
        connection = self.peer._endpoint.connection(self._timeout)
        try:
            yield connection
        except (OSError, http.client.HTTPException) as exc:
            if isinstance(exc, OSError) and exc.filename:  # our own disk
                raise ResilienceError(f"{exc.filename}: {exc.strerror}") from exc
            raise EndpointError(
                self.peer.host, self.peer.port, f"an answer to {method} {url.partition('?')[0]}", describe(exc)
            ) from exc
        finally:
            connection.close()


def _path(collection: str, shard: int) -> str:
    return f"/collections/{collection}/shards/{shard}/snapshots"


def _said(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["status"]["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return raw.decode(errors="replace")[:300]
