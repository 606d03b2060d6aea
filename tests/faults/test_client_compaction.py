"""History that is compacted, and databases that are defragmented, under a client at work."""

from __future__ import annotations

import asyncio

import pytest
from fault_scene import Scene
from fault_support import VERSION

from async_support import run, until
from instep.errors import Compacted
from instep.etcd import Client, WatchBatch
from instep.testing import EtcdCluster, EtcdServer


def test_compaction_and_defragmentation_during_traffic_lose_nothing() -> None:
    async def main(cluster: EtcdCluster) -> None:
        async with Scene(cluster.endpoints, value="x" * 500) as scene:
            scene.write()
            for member in cluster.members:
                await scene.written(scene.numbers.written + 200)
                await asyncio.to_thread(cluster.compact)
                await asyncio.to_thread(cluster.defragment, member)
            await scene.finish(history_kept=False)
            assert scene.follower.watch.resumes == 0

    with EtcdCluster(version=VERSION) as cluster:
        run(main(cluster))


def test_a_live_watch_is_not_disturbed_by_compaction_up_to_now() -> None:
    async def main(cluster: EtcdCluster) -> None:
        async with Client(cluster.endpoints) as client, client.watch("live/") as watch:
            written: list[int] = []
            seen: list[int] = []
            stop = asyncio.Event()

            async def write() -> None:
                while not stop.is_set():
                    written.append(await client.put("live/a", str(len(written))))

            async def read() -> None:
                async for batch in watch:
                    seen.extend(e.kv.mod_revision for e in batch.events)

            writer, reader = asyncio.create_task(write()), asyncio.create_task(read())
            for _ in range(8):
                before = len(written)
                await until(lambda before=before: len(written) > before + 30)
                # What every member has already sent: a watch that lags may end because its history is gone.
                await client.compact(seen[-1])
            stop.set()
            await writer
            await until(lambda: len(seen) >= len(written))
            await watch.close()
            await reader
            assert seen == written
            assert watch.resumes == 0

    with EtcdCluster(version=VERSION) as cluster:
        run(main(cluster))


class Mirror:
    """A user's copy of a range: listed, then watched; listed again if the history in between is gone."""

    def __init__(self, client: Client, prefix: str) -> None:
        self.client = client
        self.prefix = prefix
        self.state: dict[str, str] = {}
        self.revision = 0
        self.listings = 0
        self.connected = asyncio.Event()

    async def run(self) -> None:
        while True:
            listing = await self.client.range(self.prefix, timeout_s=20)
            self.state = {kv.key: kv.text for kv in listing.kvs}
            self.revision = listing.revision
            self.listings += 1
            try:
                async with self.client.watch(self.prefix, start_revision=listing.revision + 1) as watch:
                    async for batch in watch:
                        self._apply(batch)
            except Compacted:
                continue

    def _apply(self, batch: WatchBatch) -> None:
        for event in batch.events:
            if event.kind == "put":
                self.state[event.kv.key] = event.kv.text
            else:
                del self.state[event.kv.key]
        self.revision = batch.revision


def test_listing_and_watching_again_after_a_compaction_ends_with_etcds_state() -> None:
    async def main(server: EtcdServer) -> None:
        async with Client(server.endpoints, timeout_s=20) as client:
            await client.put("mirror/gone", "1")
            await client.put("mirror/stays", "1")
            mirror = Mirror(client, "mirror/")
            running = asyncio.create_task(mirror.run())
            await until(lambda: len(mirror.state) == 2)
            await client.delete("mirror/gone")
            await until(lambda: "mirror/gone" not in mirror.state)
            await change_unseen(server)
            await until(lambda: mirror.listings == 2)
            last = await client.put("mirror/new", "3")
            await until(lambda: mirror.revision >= last)
            listing = await client.range("mirror/")
            assert mirror.state == {kv.key: kv.text for kv in listing.kvs}
            assert mirror.state == {"mirror/stays": "2", "mirror/back": "2", "mirror/new": "3"}
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    with EtcdServer(version=VERSION) as server:
        run(main(server))


async def change_unseen(server: EtcdServer) -> None:
    """Changes and a compaction that no client sees: it is disconnected until the server answers it again."""
    await asyncio.to_thread(server.kill)
    with EtcdServer(version=VERSION, data_dir=server.data_dir) as elsewhere:
        for args in (("put", "mirror/stays", "2"), ("put", "mirror/back", "2"), ("del", "mirror/none")):
            await asyncio.to_thread(elsewhere.etcdctl, *args)
        async with Client(elsewhere.endpoints) as other:
            await other.compact(await other.put("elsewhere", ""))
    await asyncio.to_thread(server.restart)
