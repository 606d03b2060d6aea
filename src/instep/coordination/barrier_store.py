"""A double barrier's keys in etcd: `members/<name>` on the participants' leases, and `round` on none."""

from __future__ import annotations

from instep.coordination.barrier_scene import Round, Scene, scene_of
from instep.etcd import Client, Compare, Op


class BarrierStore:
    """Reads a scene, and writes what was decided from one. Each write is one txn that does nothing once the scene has
    changed in what matters; it may be sent again after a lost reply."""

    def __init__(self, client: Client, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._members = f"{prefix}members/"
        self._round = f"{prefix}round"

    def __repr__(self) -> str:
        return f"BarrierStore({self._prefix})"

    async def look(self) -> Scene:
        listing = await self._client.range(self._prefix)
        return scene_of(listing.kvs, listing.revision, round_key=self._round, members=self._members)

    async def register(self, name: str, token: str, lease_id: int, scene: Scene) -> bool:
        """Guarded by the round, which whoever withdraws writes anew: a request that comes late is not applied."""
        key = self._members + name
        put = Op.put(key, token, lease=lease_id)
        return (await self._client.txn([Compare.absent(key), self._same_round(scene)], [put])).succeeded

    async def write_round(self, scene: Scene, now: Round) -> bool:
        put = Op.put(self._round, now.encode())
        return (await self._client.txn([self._same_round(scene)], [put])).succeeded

    async def remove(self, name: str, created: int, scene: Scene | None) -> bool:
        """Deletes a registration. With a scene it also writes its round anew, so that nobody opens from a listing in
        which that one was still waiting."""
        key = self._members + name
        compares, then = [Compare.create_revision(key, "==", created)], [Op.delete(key)]
        if scene is not None:
            compares.append(self._same_round(scene))
            then.append(Op.put(self._round, scene.round.encode()))
        return (await self._client.txn(compares, then)).succeeded

    async def written(self, scene: Scene) -> None:
        """Returns when the round has been written since."""
        async with self._client.watch(self._round, prefix=False, start_revision=scene.revision + 1) as watch:
            async for _ in watch:
                return

    def _same_round(self, scene: Scene) -> Compare:
        return Compare.mod_revision(self._round, "==", scene.round_revision)
