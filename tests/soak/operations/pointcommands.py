"""Points: taken, deleted, verified, listed; and the commands that only look."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from uuid import uuid4

from tests.rig import VmState
from tests.rig.clock import clock_off_by
from tests.soak.guest import Guest
from tests.soak.invariants import prove_point
from tests.soak.model import Moment, Violation
from tests.soak.operations.registry import has_points, operation
from tests.soak.world import World


def point_words(guest: Guest, chance: random.Random) -> tuple[list[str], set[str]]:
    """Draw how a point is asked for; return the words and the disks that it leaves out."""
    words, excluded = ["backup", guest.name], set()
    if chance.random() < 0.15:
        words.append("--full")
    if chance.random() < 0.15 and len(guest.disks) > 1:
        excluded = {chance.choice(sorted(guest.disks))}
        words += ["--exclude", *excluded]
    return words, excluded


@operation(14, while_saved=True)
def backup(world: World, guest: Guest, chance: random.Random) -> str:
    words, excluded = point_words(guest, chance)
    moment = guest.now().without(excluded)
    outcome = world.commands.run(*words)
    world.expect(outcome)
    return keep_taken(world, outcome.document["point"], moment, excluded)


@operation(3, lambda _world, guest: guest.vm.tpm_directory.exists())
def capture_state(world: World, guest: Guest, _chance: random.Random) -> str:
    """Keep the state files alone; a restore of a point is what it was all the same."""
    outcome = world.commands.run("state", "capture", guest.name)
    if not world.expect(outcome, "state-torn"):  # a firmware that is at work may write all the time
        return "torn"
    (captured,) = outcome.document["captured"]
    return ", ".join(f"{new['kind']} {new['version']}" for new in captured["new"])


@operation(1, lambda _world, guest: (guest.vm.tpm_directory / "tpm2").exists())
def delete_orphan(world: World, guest: Guest, _chance: random.Random) -> str:
    """Leave a TPM state of a VM that was never here, and have it deleted; no VM's own state belongs to nobody."""
    uuid = str(uuid4())
    orphan = guest.vm.tpm_directory.with_name(uuid)
    shutil.copytree(guest.vm.tpm_directory, orphan)
    found = world.commands.run("orphans", "list")
    world.expect(found)
    told = {each["path"].rpartition("/")[2] for each in found.document["orphans"]}
    if uuid not in told or told & {each.vm.uuid for each in world.guests if each.vm.tpm_directory.exists()}:
        raise Violation(f"{sorted(told)} belong to no VM, and {uuid} does")
    world.expect(world.commands.run("orphans", "delete", uuid, "--unkept", "--yes"))
    if orphan.exists():
        raise Violation(f"the orphan {uuid} is there still")
    return uuid[:8]


@operation(2, has_points)
def carry_state_out(world: World, guest: Guest, _chance: random.Random) -> str:
    """Look at what is kept of the state, and write its newest versions to a file: an import finds them all here."""
    shown = world.commands.run("state", "show", guest.vm.uuid)
    world.expect(shown)
    kinds = shown.document["state"]["kinds"]
    if unread := [f"{name}: {kind['unread']}" for name, kind in kinds.items() if kind["unread"]]:
        raise Violation(f"what is kept of the state of VM {guest.name} cannot be read: {unread}")
    newest = {name: kind["newest"]["sha256"] for name, kind in kinds.items() if kind["newest"]}
    if not newest:
        return "nothing is kept"
    file, key = world.home / "carried.state", next((world.home / "keys").glob("*.key"))
    world.expect(world.commands.run("state", "export", guest.vm.uuid, "--to", file, "--key", key))
    found = world.commands.run("state", "import", file)
    file.unlink()
    world.expect(found)
    known = {each["kind"]: each["sha256"] for each in found.document["imported"]["known"]}
    if found.document["imported"]["new"] or known != newest:
        raise Violation(f"{newest} was carried out, and an import finds {found.document['imported']}")
    return ", ".join(sorted(newest))


def keep_taken(world: World, point: dict[str, object], moment: Moment, excluded: set[str] | None = None) -> str:
    """Compare a point that a command printed with what it must be, and remember it."""
    disks = point["disks"]
    assert isinstance(disks, list)
    targets = {disk["target"] for disk in disks}
    if targets != set(moment.images):
        raise Violation(f"point {point['id']} has disks {sorted(targets)} in place of {sorted(moment.images)}")
    told = point["excluded"]
    assert isinstance(told, list)
    if {each["target"] for each in told} != (excluded or set()):
        raise Violation(f"point {point['id']} tells {told} as excluded in place of {excluded}")
    short = world.keep_point(point["id"], moment)
    return " ".join([short, *("{target}:{mode}({reason})".format(**disk) for disk in disks)])


@operation(2, lambda _world, guest: not guest.saved)
def backup_with_a_clock_ahead(world: World, guest: Guest, chance: random.Random) -> str:
    """The clock is ahead for one backup and right again for the next command: the order stays that of events."""
    ahead = chance.choice((10, 3600, 90_000))
    moment = guest.now()
    outcome = world.commands.start("backup", guest.name, env=clock_off_by(ahead)).wait()
    world.expect(outcome)
    return f"by {ahead} s: {keep_taken(world, outcome.document['point'], moment)}"


@operation(1, lambda world, guest: not guest.saved and bool(world.points_of(guest)))
def home_put_back(world: World, guest: Guest, _chance: random.Random) -> str:
    """The home is put back as it was before a backup: the next command that names the VM's last point finds that."""
    databases = [path for name in ("catalog", "flows") for path in world.home.glob(f"{name}.sqlite*")]
    held = {path: path.read_bytes() for path in databases}
    moment = guest.now()
    outcome = world.commands.start("backup", guest.name).wait()
    world.expect(outcome)
    for path in [path for name in ("catalog", "flows") for path in world.home.glob(f"{name}.sqlite*")]:
        path.unlink()
    for path, content in held.items():
        path.write_bytes(content)
        path.chmod(0o600)
    verified = world.commands.start("verify", f"{guest.name}@latest").wait()
    world.expect(verified)
    return keep_taken(world, outcome.document["point"], moment)


@operation(1, lambda _world, guest: guest.state is not VmState.RUNNING)
def backup_with_quiesce(world: World, guest: Guest, _chance: random.Random) -> str:
    """There is no agent in these guests: refused, and nothing is touched. Of a VM that is off nothing is to freeze."""
    moment = guest.now()
    outcome = world.commands.run("backup", guest.name, "--quiesce")
    if guest.off and outcome.done:
        return keep_taken(world, outcome.document["point"], moment)
    world.expect_refused(outcome, "agent-unavailable")
    return outcome.code


@operation(2, while_saved=True)
def backup_all(world: World, _guest: Guest, _chance: random.Random) -> str:
    moments = {guest.name: guest.now() for guest in world.guests}
    outcome = world.commands.run("backup", "--all")
    world.expect(outcome)
    return "; ".join(keep_taken(world, point, moments[point["vm"]]) for point in outcome.document["points"])


@operation(3, lambda world, guest: len(world.points_of(guest)) > 2, while_saved=True)
def delete_point(world: World, guest: Guest, chance: random.Random) -> str:
    point = chance.choice(sorted(world.points_of(guest)))
    grace = chance.choice(("0", "7d"))
    world.expect(world.commands.run("point", "delete", point, "--yes", "--grace", grace))
    del world.points.known[point]
    return f"{point[:8]}, grace {grace}"


@operation(2, has_points, while_saved=True)
def delete_and_undelete(world: World, guest: Guest, chance: random.Random) -> str:
    """A point that is deleted is in no list, and comes back as it was."""
    point = chance.choice(sorted(world.points_of(guest)))
    world.expect(world.commands.run("point", "delete", point, "--yes"))
    world.expect_refused(world.commands.run("point", "show", point), "point-not-found")
    hidden = world.commands.run("points", "--deleted")
    world.expect(hidden)
    if point not in {each["point"] for each in hidden.document["deleted"]}:
        raise Violation(f"the deleted point {point} is not among those that can come back")
    world.expect(world.commands.run("point", "undelete", point))
    prove_point(world, point)
    return point[:8]


@operation(2, lambda world, guest: len(world.points_of(guest)) > 3, while_saved=True)
def retain(world: World, guest: Guest, chance: random.Random) -> str:
    """Let points go by a rule; a protected one and the newest stay, and no more go than the rule says."""
    mine = sorted(world.points_of(guest))
    kept, last = chance.choice(mine), chance.randint(1, 4)
    listed = world.commands.run("points", guest.name)
    world.expect(listed)
    made = [point["id"] for point in listed.document["points"] if point["id"] not in world.points.safety]
    world.expect(world.commands.run("point", "protect", kept))
    world.expect_refused(world.commands.run("point", "delete", kept, "--yes"), "point-protected")
    world.expect(world.commands.run("policy", "set", guest.name, "--keep-last", str(last), "--zone", "UTC"))
    outcome = world.commands.run("retain", guest.name, "--yes")
    world.expect(outcome)
    hidden = set(outcome.document["retention"]["hidden"])
    world.expect(world.commands.run("policy", "drop", guest.name))
    world.expect(world.commands.run("point", "unprotect", kept))
    for point in hidden:
        if point == kept or point not in world.points.known:
            raise Violation(f"retain let {point} go, which was protected, or is none of the VM's")
        del world.points.known[point]
    if len(set(made) - hidden) < min(last, len(made)):
        raise Violation(f"{len(set(made) - hidden)} of {len(made)} points stayed, and {last} were to be kept")
    return f"last={last}: {len(hidden)} of {len(mine)} went"


@operation(2, has_points, while_saved=True)
def prune(world: World, guest: Guest, chance: random.Random) -> str:
    """Give space back; a point of the guest is what it was."""
    waste = chance.choice(("0", "20%", "50%"))
    outcome = world.commands.run("prune", "--young", "0", "--waste", waste)
    world.expect(outcome)
    pruned = outcome.document["pruned"]
    if pruned["problems"]:
        raise Violation(f"a prune could not read {pruned['problems']}")
    point = chance.choice(sorted(world.points_of(guest)))
    prove_point(world, point)
    return f"{pruned['freed_bytes']} bytes, {pruned['renewed']['packs']} packs new, {point[:8]} proved"


@operation(3, has_points, while_saved=True)
def restore_to_files(world: World, guest: Guest, chance: random.Random) -> str:
    point = chance.choice(sorted(world.points_of(guest)))
    prove_point(world, point)
    return point[:8]


@operation(1, has_points, while_saved=True)
def verify(world: World, guest: Guest, chance: random.Random) -> str:
    what = chance.choice(("--all", "--budget=10M", guest.name, *sorted(world.points_of(guest))[:2]))
    sample = ["--sample", "20"] if chance.random() < 0.3 and not what.startswith("--budget") else []
    outcome = world.commands.run("verify", what, *sample)
    world.expect(outcome)
    if not outcome.document["ok"]:
        raise Violation(f"verify ends with 0 and is not ok: {outcome.told()}")
    return what


@operation(2, while_saved=True)
def look(world: World, guest: Guest, chance: random.Random) -> str:
    """Commands that only read. A health that is not sound ends with `incomplete`, which is their answer."""
    words, codes = chance.choice(_looks(world, guest))
    outcome = world.commands.run(*words)
    world.expect(outcome, *codes)
    return f"{' '.join(words)}: {outcome.code}"


def _looks(world: World, guest: Guest) -> Sequence[tuple[list[str], tuple[str, ...]]]:
    looks: list[tuple[list[str], tuple[str, ...]]] = [
        (["vm", "list"], ()),
        (["vm", "show", guest.name], ()),
        (["log"], ()),
        (["log", guest.name], () if world.points_of(guest) else ("vm-not-found",)),
        (["points", guest.name], () if world.points_of(guest) else ("vm-not-found",)),
        (["checkpoint", "list", guest.name], ()),
        (["checkpoint", "tree", guest.name], ()),
        (["checkpoint", "health", guest.name], ("incomplete",)),
        (["checkpoint", "repair", guest.name, "--dry-run"], ()),
        (["snapshot", "list", guest.name], ()),
        (["snapshot", "health", guest.name], ("incomplete",)),
    ]
    if world.points_of(guest):
        looks.append((["point", "show", f"{guest.name}@latest"], ()))
        looks.append((["init"], ()))
    return looks


@operation(1, has_points)
def latest(world: World, guest: Guest, _chance: random.Random) -> str:
    """VM@latest is the last point that somebody made, not what a restore in place kept of the state that it left."""
    made = [point for point in world.points_of(guest) if point not in world.points.safety]
    if not made:
        return "all are safety points"
    shown = world.commands.run("point", "show", f"{guest.name}@latest")
    if shown.document["point"]["id"] != made[-1]:
        raise Violation(f"{guest.name}@latest is {shown.document['point']['id']} in place of {made[-1]}")
    status = world.commands.run("status")
    found = {vm["name"]: vm["point"] for vm in status.document["status"]["vms"]}
    if found.get(guest.name) != made[-1]:
        raise Violation(f"status calls {found.get(guest.name)} the newest point of {guest.name} in place of {made[-1]}")
    return str(made[-1])[:8]


@operation(2, while_saved=True)
def doctor(world: World, guest: Guest, chance: random.Random) -> str:
    """What doctor calls a problem it must say with `incomplete`; a VM that is whole has none."""
    words = ["doctor", *([guest.name] if chance.random() < 0.3 else []), *(["--fix"] if chance.random() < 0.6 else [])]
    outcome = world.commands.run(*words)
    world.expect(outcome)
    return " ".join(words[1:])


@operation(1, has_points)
def adopt(world: World, _guest: Guest, _chance: random.Random) -> str:
    """The catalogue is lost, and built again from the repository: points, versions, what is kept with snapshots."""
    kept = {each.name: _kept_versions(world, each) for each in world.guests if _capture(world, each)}
    for path in world.home.glob("catalog.sqlite*"):
        path.unlink()
    outcome = world.commands.run("init", "--adopt")
    world.expect(outcome)
    adopted = outcome.document["init"]["adopted_points"]
    if adopted != len(world.points.known):
        raise Violation(f"{adopted} points were adopted, of {len(world.points.known)}")
    for each in world.guests:
        if each.name not in kept:  # after a kill nothing may have noted yet in the repository what is kept
            for snapshot in each.snapshots.values():
                snapshot.ours = False
        elif lost := kept[each.name] - _kept_versions(world, each):
            raise Violation(f"state versions of {each.name} are lost with the catalogue: {sorted(lost)}")
    return f"{adopted} points"


def _capture(world: World, guest: Guest) -> bool:
    """Return whether the state of a guest was captured, by which the repository is brought in line as well."""
    return guest.vm.tpm_directory.exists() and world.expect(
        world.commands.run("state", "capture", guest.name), "state-torn"
    )


def _kept_versions(world: World, guest: Guest) -> set[tuple[str, int, str]]:
    outcome = world.commands.run("state", "versions", guest.name)
    world.expect(outcome)
    versions = outcome.document["versions"]
    return {(each["kind"], each["version"], each["sha256"]) for each in versions if each["kept"] or each["held_by"]}


@operation(1, has_points)
def export_key(world: World, _guest: Guest, _chance: random.Random) -> str:
    phrase = world.work("phrase")
    phrase.write_text("correct horse\n")
    outcome = world.commands.run("key", "export", "--passphrase-file", phrase)
    world.expect(outcome)
    if "BEGIN" not in outcome.document["key"]["text"]:
        raise Violation(f"no key: {outcome.told()}")
    return ""
