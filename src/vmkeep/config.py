"""Where an installation keeps its things and which host it speaks to.

This is the only place that reads the environment. Precedence: the command line, then the settings file
(``VMKEEP_HOME/vmkeep.toml``), then the environment, then what is built in.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmkeep.errors import InvalidRequest
from vmkeep.filesystem import file_error
from vmkeep.ownership import refuse_exposed
from vmkeep.rates import RATE_FORMS, REQUEST_FORMS, Limits, rate_bytes, rate_requests
from vmkeep.values import dataclass

if TYPE_CHECKING:
    from vmkeep.audience import Audience
    from vmkeep.buckets import BucketAccess
    from vmkeep.providers import ProviderSettings

SETTINGS_FILE = "vmkeep.toml"
DEFAULT_URI = "qemu:///system"
DEFAULT_BLOCK_BYTES = 65536
ADAPTIVE, ALWAYS = "adaptive", "always"
"""How hard blocks are compressed: as the machine has time for it, or as well as it goes."""
ON, OFF = "on", "off"
MAX_WORKERS = 64
MAX_POINTS_AT_ONCE = 64
DEFAULT_POINTS_AT_ONCE = 2
DEFAULT_STALLED_AFTER_SECONDS = 900
DEFAULT_LONGEST_PAUSE_SECONDS = 30
DEFAULT_STATE_VERSIONS = "last=50, hourly=48, daily=90"
"""A guest that writes to its TPM all the time makes a version every few seconds; what it was yesterday stays."""
DEFAULT_REMOVED_TPM_DAYS = 90
DEFAULT_CERTIFICATE_DAYS = 30
MAX_CERTIFICATE_DAYS = 398
"""As long as browsers take a certificate for."""
MAX_DAYS = 36_500

_TYPES: Mapping[str, type[str | int]] = {
    "uri": str,
    "repository": str,
    "scratch_dir": str,
    "run_dir": str,
    "images_dir": str,
    "workers": int,
    "block_bytes": int,
    "compression": str,
    "points_at_once": int,
    "stalled_after_seconds": int,
    "longest_pause_seconds": int,
    "state_versions": str,
    "removed_tpm_days": int,
    "trial_start": str,
    "key_passphrase_file": str,
    "objective": str,
    "max_rate": str,
    "max_requests": str,
    "verify_budget": str,
    "server_address": str,
    "agents_address": str,
    "host_certificate_days": int,
}
_MOST: Mapping[str, int] = {
    "workers": MAX_WORKERS,
    "points_at_once": MAX_POINTS_AT_ONCE,
    "removed_tpm_days": MAX_DAYS,
    "host_certificate_days": MAX_CERTIFICATE_DAYS,
}
_CHOICES: Mapping[str, tuple[str, str]] = {"compression": (ADAPTIVE, ALWAYS), "trial_start": (ON, OFF)}
_AMOUNTS: Mapping[str, str] = {
    "objective": 'a length of time: "26h"',
    "verify_budget": 'a time or a size: "2h", "50GB"',
}
_VMS = "vm"
_KEYS = "key"
_TELL = "tell"
_S3 = "s3"
_TABLES = (_VMS, _KEYS, _TELL, _S3)
_VM_TYPES: Mapping[str, tuple[type, str]] = {
    "exclude": (list, "a list of disks by target"),
    "skip": (bool, "true or false"),
    "reason": (str, "text in quotes"),
    "objective": (str, 'a length of time in quotes, as "26h"'),
}
_VM_EXAMPLE = """Write it like this: [vm."NAME"], and below it exclude = ["vdb"] or skip = true, and reason = "why"."""
_DIRECTORIES = ("scratch_dir", "run_dir", "images_dir")
_OPENER = "key_passphrase_file"


@dataclass(frozen=True, slots=True)
class VmSettings:
    """What holds of one VM for good: disks that are in none of its points, and whether `backup --all` leaves it out.

    ``exclude`` are targets. ``reason`` is for people; empty when none was given. ``objective_seconds`` is how old its
    newest point may be; None for what holds of all.
    """

    exclude: tuple[str, ...] = ()
    skip: bool = False
    reason: str = ""
    objective_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What one command works with.

    ``repository`` is a location: an absolute directory, or a URL of a store. ``scratch_dir`` None lets vmkeep
    put scratch beside each image. ``run_dir`` holds sockets and must be short (a socket's path ends at 107 bytes).
    ``points_at_once`` is how many points this installation copies at one time, in however many processes.
    ``stalled_after_seconds`` is how long one call to the repository's storage, or to libvirt, may take.
    ``longest_pause_seconds`` is how long a guest may stand still for the instant of a point or snapshot.
    ``state_versions`` is the rule by which versions of state files are kept that no point and no snapshot needs.
    ``removed_tpm_days`` is how long versions of a TPM that was removed are kept that no point and no snapshot needs.
    ``trial_start``: a TPM state that is captured is loaded by swtpm before it is kept.
    ``vms`` is by the name or UUID that stands in the settings file.
    ``key_passphrase_file`` holds what opens key files that have a passphrase; ``providers`` hold keys elsewhere.
    ``objective_seconds`` is how old the newest point of a VM may be; None for what the schedule says.
    ``verify_budget`` is what a verification that runs by itself may take, a time or a size; empty for all there is.
    ``audience`` hears of runs of jobs.
    ``s3`` is the table of how buckets are reached, which holds no secret.
    ``limits`` is how fast a process may move data.
    ``server_address`` and ``agents_address`` are where hosts of a fleet reach its server (HOST:PORT), as invites tell
    it; ``host_certificate_days`` is the term of their certificates.
    """

    home: Path
    uri: str
    repository: str
    run_dir: Path
    images_dir: Path
    workers: int
    scratch_dir: Path | None = None
    block_bytes: int = DEFAULT_BLOCK_BYTES
    compression: str = ADAPTIVE
    points_at_once: int = DEFAULT_POINTS_AT_ONCE
    stalled_after_seconds: int = DEFAULT_STALLED_AFTER_SECONDS
    longest_pause_seconds: int = DEFAULT_LONGEST_PAUSE_SECONDS
    state_versions: str = DEFAULT_STATE_VERSIONS
    removed_tpm_days: int = DEFAULT_REMOVED_TPM_DAYS
    trial_start: bool = True
    vms: Mapping[str, VmSettings] = field(default_factory=dict)
    key_passphrase_file: Path | None = None
    providers: tuple[ProviderSettings, ...] = ()
    objective_seconds: int | None = None
    verify_budget: str = ""
    audience: Audience | None = None
    s3: Mapping[str, str | bool] = field(default_factory=dict)
    limits: Limits = Limits()
    server_address: str = ""
    agents_address: str = ""
    host_certificate_days: int = DEFAULT_CERTIFICATE_DAYS

    def bucket_access(self, environ: Mapping[str, str] = os.environ) -> BucketAccess:
        """Return how a bucket is reached: by the table ``[s3]``, and what the AWS tools of this user are told.

        Raises what ``find_access`` does. What it returns holds secrets.
        """
        from vmkeep.buckets import find_access

        user_home = Path(environ.get("HOME") or Path.home())
        access = find_access(self.s3, environ, user_home)
        return replace(access, patience_seconds=float(self.stalled_after_seconds))

    def access_to(self, location: str) -> BucketAccess | None:
        """Return how a repository's location is reached: None for a directory. Raises as ``bucket_access``."""
        return self.bucket_access() if "://" in location else None

    def of_vm(self, name: str, uuid: str) -> VmSettings:
        """Return what the settings file says of a VM: by its name, else by its UUID."""
        return self.vms.get(name) or self.vms.get(uuid) or VmSettings()

    @property
    def settings_path(self) -> Path:
        return self.home / SETTINGS_FILE

    @property
    def catalog_path(self) -> Path:
        return self.home / "catalog.sqlite"

    @property
    def flows_path(self) -> Path:
        return self.home / "flows.sqlite"

    @property
    def keys_dir(self) -> Path:
        return self.home / "keys"

    @property
    def signing_key_path(self) -> Path:
        return self.home / "host.key"

    @property
    def authority_path(self) -> Path:
        """The key of the authority that this server has for its hosts."""
        return self.home / "authority.key"

    @property
    def server_key_path(self) -> Path:
        return self.home / "server.key"

    @property
    def authorities_path(self) -> Path:
        """The certificates of authorities whose hosts this server takes."""
        return self.home / "authorities.pem"

    @property
    def agent_key_path(self) -> Path:
        """What this host has to speak to its server."""
        return self.home / "agent.key"

    @property
    def cache_dir(self) -> Path:
        return self.home / "cache"

    @property
    def locks_dir(self) -> Path:
        return self.home / "locks"

    @property
    def guards_dir(self) -> Path:
        return self.home / "guards"

    @property
    def restores_dir(self) -> Path:
        return self.home / "restores"

    @property
    def snapshots_dir(self) -> Path:
        return self.home / "snapshots"

    @property
    def deletions_dir(self) -> Path:
        return self.home / "deletions"

    @property
    def owners_dir(self) -> Path:
        return self.home / "owners"

    @property
    def schedule_dir(self) -> Path:
        return self.home / "schedule"

    @property
    def logs_dir(self) -> Path:
        return self.home / "logs"


def load_settings(
    uri: str | None = None,
    home: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    keys_too: bool = True,
) -> Settings:
    """Return the settings of this user; nothing is created.

    ``keys_too``: refuse keys that others may read; without it they count as nothing worse than they are, for who tells.

    Raises InvalidRequest, naming file and key, for a setting that is unknown, of the wrong type or meaningless, and
    HomeExposed, before anything of the home is read, when others have it in hand.
    """
    root = os.geteuid() == 0
    place = home_place(home, environ)
    refuse_exposed(place, keys_too=keys_too)
    found = _read(place / SETTINGS_FILE)
    settings = Settings(
        home=place,
        uri=uri or str(found.get("uri") or environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI),
        repository=str(found.get("repository", place / "repository")),
        run_dir=_run_dir(place, environ, root=root),
        images_dir=Path("/var/lib/libvirt/images"),
        # One more than there are processors, because one of them waits for QEMU most of the time.
        workers=min(8, (os.cpu_count() or 2) + 1),
        compression=str(found.get("compression", ADAPTIVE)),
        state_versions=str(found.get("state_versions", DEFAULT_STATE_VERSIONS)),
        trial_start=found.get("trial_start", ON) == ON,
        vms=_vms(place / SETTINGS_FILE, found.get(_VMS, {})),
        objective_seconds=_span(found.get("objective")),
        verify_budget=str(found.get("verify_budget", "")),
        server_address=str(found.get("server_address", "")),
        agents_address=str(found.get("agents_address", "")),
        key_passphrase_file=Path(str(found[_OPENER])) if _OPENER in found else None,
        audience=_audience(place / SETTINGS_FILE, found[_TELL]) if _TELL in found else None,
        providers=_providers(place / SETTINGS_FILE, found[_KEYS]) if _KEYS in found else (),
        s3=_s3(place / SETTINGS_FILE, found[_S3]) if _S3 in found else {},
        limits=Limits(rate_bytes(found.get("max_rate", "")), rate_requests(found.get("max_requests", ""))),
    )
    directories = {key: Path(str(found[key])) for key in _DIRECTORIES if key in found}
    numbers = {key: int(found[key]) for key, kind in _TYPES.items() if kind is int and key in found}
    return replace(settings, **directories, **numbers)  # type: ignore[arg-type] # mypy joins the two kinds of value


def resolve_location(location: str) -> str:
    """Return a repository's location as it is kept: a bucket's in one form, a directory absolute.

    Raises InvalidRequest for an address of another kind.
    """
    if "://" in location:
        from vmkeep.buckets import BucketAddress

        return str(BucketAddress.parse(location))
    if not location.strip():
        raise InvalidRequest("The repository's directory is empty text")
    return str(Path(location).expanduser().absolute())


def editor_command(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the words of the user's editor: VISUAL, EDITOR, or vi. Raises InvalidRequest for quotes left open."""
    text = environ.get("VISUAL") or environ.get("EDITOR") or "vi"
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidRequest(f"{text!r} is no command for an editor: {error}", hint="Set VISUAL or EDITOR.") from error
    return words or ["vi"]


def prepare_home(settings: Settings) -> None:
    """Make the home directory, for its owner only, if it is not there.

    Raises PermissionRefused, NoSpace or StoreError naming the directory, and HomeExposed when somebody else has made it
    since the settings were loaded.
    """
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(error, settings.home) from error
    refuse_exposed(settings.home, keys_too=False)


def save_repository_location(settings: Settings, location: str) -> Settings:
    """Write the repository's location to the settings file and return the settings with it.

    Every other line of the file stays as it is. The file is replaced as a whole or not at all.
    """
    prepare_home(settings)
    path = settings.settings_path
    before = _read(path)
    text = path.read_text("utf-8") if path.exists() else ""
    lines = text.splitlines(keepends=True)
    line = f"repository = {_toml_string(location)}\n"
    kept = [old for old in lines if old.split("=", 1)[0].strip().strip("\"'") != "repository"]
    changed = line + "".join(kept)
    try:
        parsed = _parsed(changed)
    except ValueError:
        parsed = {}
    if parsed != {**before, "repository": location}:
        raise InvalidRequest(
            f"{path} cannot be changed without risk to the other settings",
            path=str(path),
            hint=f"Write this line into it by hand: {line.strip()}",
        )
    _replace_file(path, changed)
    return replace(settings, repository=location)


def home_place(home: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the home of this user is, whatever is there."""
    given = home or environ.get("VMKEEP_HOME")
    if given:
        return Path(given).expanduser().absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/vmkeep")
    return _user_directory(environ, "XDG_DATA_HOME", ".local/share") / "vmkeep"


def _user_directory(environ: Mapping[str, str], name: str, fallback: str) -> Path:
    given = environ.get(name, "")
    if given.startswith("/"):  # the XDG base directory specification: relative values are to be ignored
        return Path(given)
    return Path(environ.get("HOME") or Path.home()) / fallback


def _run_dir(home: Path, environ: Mapping[str, str], *, root: bool) -> Path:
    if root:
        return Path("/run/vmkeep")
    given = environ.get("XDG_RUNTIME_DIR", "")
    return Path(given) / "vmkeep" if given.startswith("/") else home / "run"


def _parsed(text: str) -> dict[str, Any]:
    """Return what a text of TOML says; raises ValueError."""
    import tomllib  # many have no such file

    return tomllib.loads(text)


def _read(path: Path) -> dict[str, Any]:
    try:
        parsed = _parsed(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:  # of the decoder, or of the parser
        raise InvalidRequest(
            f"{path} is not a settings file: {error}", path=str(path), hint="Correct the file; it must be TOML."
        ) from error
    except OSError as error:
        raise file_error(error, path, "read") from error
    for key, value in parsed.items():
        if key not in _TABLES:
            _check(path, key, value)
    return parsed


def _providers(path: Path, tables: object) -> tuple[ProviderSettings, ...]:
    from vmkeep.providers import read_providers  # few installations have any

    return read_providers(str(path), tables)


def _audience(path: Path, table: object) -> Audience:
    from vmkeep.audience import read_audience  # few commands tell

    return read_audience(str(path), table)


def _s3(path: Path, table: object) -> Mapping[str, str | bool]:
    from vmkeep.buckets import read_table

    return read_table(str(path), table)


def _vms(path: Path, tables: object) -> dict[str, VmSettings]:
    """Return the settings of each VM. Raises InvalidRequest naming the VM and the setting."""
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise _wrong(path, f"{path}: setting {_VMS!r} must hold one table for each VM", _VM_EXAMPLE)
    return {name: _vm(path, name, table) for name, table in tables.items()}


def _vm(path: Path, name: str, table: Mapping[str, object]) -> VmSettings:
    where = f"{path}: VM {name!r}"
    for key in table:
        if key not in _VM_TYPES:
            raise _wrong(path, f"{where}: unknown setting {key!r}", f"Those of a VM are: {', '.join(_VM_TYPES)}.")
    for key, value in table.items():
        kind, words = _VM_TYPES[key]
        if not isinstance(value, kind):
            raise _wrong(path, f"{where}: {key!r} must be {words}", _VM_EXAMPLE)
    exclude: Any = table.get("exclude", [])
    if not all(isinstance(target, str) and target.strip() for target in exclude):
        raise _wrong(path, f"{where}: 'exclude' must be {_VM_TYPES['exclude'][1]}", _VM_EXAMPLE)
    settings = VmSettings(
        exclude=tuple(dict.fromkeys(exclude)),
        skip=bool(table.get("skip", False)),
        reason=" ".join(str(table.get("reason", "")).split()),
        objective_seconds=_span(table.get("objective")),
    )
    if "objective" in table and not settings.objective_seconds:
        raise _wrong(path, f"{where}: 'objective' must be {_VM_TYPES['objective'][1]}", _VM_EXAMPLE)
    if settings.reason and not (settings.exclude or settings.skip):
        raise _wrong(path, f"{where} has a reason, but neither 'exclude' nor 'skip'", _VM_EXAMPLE)
    return settings


def _check(path: Path, key: str, value: object) -> None:
    wanted = _TYPES.get(key)
    if wanted is None:
        known = ", ".join(sorted([*_TYPES, *_TABLES]))
        raise _wrong(path, f"{path}: unknown setting {key!r}", f"The settings are: {known}.")
    if not isinstance(value, wanted) or isinstance(value, bool):
        kind = "text in quotes" if wanted is str else "a whole number"
        raise _wrong(path, f"{path}: setting {key!r} must be {kind}", f"Correct {key} in {path}.")
    place = key in (*_DIRECTORIES, _OPENER) or (key == "repository" and "://" not in str(value))
    if place and not str(value).startswith("/"):
        what = "the absolute path of a file" if key == _OPENER else "an absolute directory"
        raise _wrong(path, f"{path}: setting {key!r} must be {what}", f"Correct {key} in {path}.")
    problem = _text_problem(key, str(value))
    if problem:
        raise _wrong(path, f"{path}: {problem}", f"Correct {key} in {path}.")
    choice = _CHOICES.get(key)
    if choice is not None and value not in choice:
        one, other = choice
        raise _wrong(path, f"{path}: setting {key!r} must be {one!r} or {other!r}", f"Correct {key} in {path}.")
    if key == "repository" and not place:
        resolve_location(str(value))
    number = value if isinstance(value, int) else 0
    most = _MOST.get(key)
    if most is not None and not 1 <= number <= most:
        raise _wrong(path, f"{path}: setting {key!r} must be 1 to {most}", f"Correct {key} in {path}.")
    if key in ("stalled_after_seconds", "longest_pause_seconds") and number < 1:
        raise _wrong(path, f"{path}: setting {key!r} must be 1 or more", f"Correct {key} in {path}.")
    if key == "block_bytes" and (number < 4096 or number.bit_count() != 1):
        raise _wrong(path, f"{path}: setting {key!r} must be a power of two from 4096", f"Correct {key} in {path}.")


def limited(settings: Settings, max_rate: str | None, max_requests: str | None) -> Settings:
    """Return the settings with the limits that a command line gives in their place; raises InvalidRequest."""
    given = {"max_rate": max_rate, "max_requests": max_requests}
    for key, value in given.items():
        problem = _text_problem(key, value) if value is not None else ""
        if problem:
            raise InvalidRequest(problem.replace(f"setting {key!r}", f"--{key.replace('_', '-')}"))
    rate = settings.limits.bytes_a_second if max_rate is None else rate_bytes(max_rate)
    requests = settings.limits.requests_a_second if max_requests is None else rate_requests(max_requests)
    return replace(settings, limits=Limits(rate, requests))


def _text_problem(key: str, value: str) -> str:
    amount = _AMOUNTS.get(key)
    if amount is not None and not _amount(value, size_too="size" in amount):
        return f"setting {key!r} must be {amount}"
    if key == "max_rate" and rate_bytes(value) is None:
        return f"setting {key!r} must be a rate of 100kB/s or more, as {RATE_FORMS}"
    if key == "max_requests" and rate_requests(value) is None:
        return f"setting {key!r} must be a number of requests a second, as {REQUEST_FORMS}"
    return ""


def _span(value: object) -> int | None:
    """Return the seconds of a length of time; None for none."""
    if value is None:
        return None
    from vmkeep.spans import span_seconds  # few settings have one

    return span_seconds(str(value))


def _amount(value: object, *, size_too: bool) -> int | None:
    """Return a length of time in seconds, or a size in bytes if that may be; 0 or None for neither."""
    from vmkeep.spans import size_bytes

    size = size_bytes(str(value)) if size_too and not str(value).strip().isdecimal() else None
    return _span(value) or size


def _wrong(path: Path, message: str, hint: str) -> InvalidRequest:
    return InvalidRequest(message, path=str(path), hint=hint)


def _toml_string(value: str) -> str:
    """Return a TOML basic string: JSON's escapes are a subset of TOML's, except that TOML wants DEL escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _replace_file(path: Path, text: str) -> None:
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest("The location is not valid UTF-8 and cannot be written to a settings file") from error
    try:
        # One name, so that what a killed process left is written over; the lock of `vmkeep init` keeps others away.
        beside = path.with_name(f".{path.name}.partial")
        try:
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise file_error(error, path) from error
