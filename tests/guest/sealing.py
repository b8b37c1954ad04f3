"""What a guest keeps in its TPM, in its UEFI variables and on its disk, so that it can tell later whether all fit."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tests.guest.guest import LinuxGuest

# "plain" is sealed to the TPM alone; "measured" opens only with PCR 7 as it was (Secure Boot and its keys), which is
# what disk encryption in guests is bound to. Both are on the disk only, from its 256th KiB on, not in the TPM: its
# NV index holds the word of the moment instead, and so tells one state of the same TPM from another.
_BLOBS = "bs=4096 seek=64 skip=64 count=16"
_VARIABLE = "/sys/firmware/efi/efivars/VmkeepTest-6a0f8a2e-52cf-4f5a-9f0e-5f0c1f1f0b5e"
_NV_INDEX = "0x1500016"

_SEAL = f"""\
set -e
tpm2_createprimary -Q -C o -c primary.ctx
tpm2_startauthsession -S session.ctx
tpm2_policypcr -Q -S session.ctx -l sha256:7 -L policy
tpm2_flushcontext session.ctx
printf 'plain WORD' | tpm2_create -Q -C primary.ctx -u plain.pub -r plain.priv -i -
printf 'measured WORD' | tpm2_create -Q -C primary.ctx -L policy -a 'fixedtpm|fixedparent|adminwithpolicy' \
    -u measured.pub -r measured.priv -i -
tar -cf blobs plain.* measured.*
dd if=blobs of=/dev/vda conv=sync,fsync {_BLOBS.replace("skip=64 ", "")} 2> /dev/null
tpm2_nvundefine -Q {_NV_INDEX} 2> /dev/null || true
tpm2_nvdefine -Q -s 16 -a 'ownerread|ownerwrite' {_NV_INDEX}
printf '%-16s' 'nv WORD' | tpm2_nvwrite -Q -C o -i - {_NV_INDEX}
[ ! -e {_VARIABLE} ] || chattr -i {_VARIABLE}
printf '\\007\\000\\000\\000variable WORD' > {_VARIABLE}
"""

# One line for each secret; a command that fails leaves the TPM's words in the line.
_TELL = f"""\
rm -f ./*.pub ./*.priv ./*.ctx
echo "variable=$(tail -c +5 {_VARIABLE})"
echo "nv=$(tpm2_nvread -C o -s 16 {_NV_INDEX} 2>&1 | tr '\\n' ' ')"
dd if=/dev/vda {_BLOBS.replace("seek=64 ", "")} 2> /dev/null | tar -xf - || exit 1
tpm2_createprimary -Q -C o -c primary.ctx || exit 1
unseal() {{
    tpm2_load -Q -C primary.ctx -u "$1.pub" -r "$1.priv" -c "$1.ctx" || return
    shift
    tpm2_unseal "$@"
}}
echo "plain=$(unseal plain -c plain.ctx 2>&1 | tr '\\n' ' ')"
echo "measured=$(unseal measured -c measured.ctx -p pcr:sha256:7 2>&1 | tr '\\n' ' ')"
"""


@dataclass(frozen=True, slots=True)
class Told:
    """What the guest found: each value, or the TPM's words about why there is none."""

    variable: str
    nv: str
    plain: str
    measured: str

    @classmethod
    def of(cls, word: str) -> Told:
        """Return what a guest must find whose TPM, UEFI variables and disk are all as ``seal`` left them."""
        return cls(*(f"{field.name} {word}" for field in fields(cls)))


def seal(guest: LinuxGuest, word: str) -> None:
    """Let the guest seal the word, write it to its TPM's NV memory and set it as a UEFI variable; about 2 s."""
    guest.run(_SEAL.replace("WORD", word))


def tell(guest: LinuxGuest) -> Told:
    """Ask the guest for the word in all four places; about 1 s."""
    lines = dict(line.split("=", 1) for line in guest.run(_TELL).splitlines() if "=" in line)
    return Told(*(lines[field.name].strip() for field in fields(Told)))
