"""Names and paths that people give."""

from __future__ import annotations

from tests.zoo.row import Image, Row

_LONG = "x" * 240 + ".qcow2"

ROWS = (
    Row("name-spaces", "a name with spaces", vm_name="web server (old)", sample=True),
    Row("name-unicode", "a name with letters of other scripts", vm_name="büro-東京-№5"),
    Row("name-dash", "a name that begins with a dash", vm_name="--help"),
    Row("name-quotes", "a name with quotes and dollars", vm_name="""it's "the" $HOME; `id`"""),
    Row("name-at", "a name with @ and colons", vm_name="win@latest:5"),
    Row("name-brackets", "a name with square brackets", vm_name="[red]vm[bold]"),
    Row("name-percent", "a name with percent signs and braces", vm_name="100%s{0}"),
    Row("name-uuid", "a name that looks like a UUID", vm_name="0f7c2a52-0f9a-4b70-9d62-2b9f5a6f4c11"),
    Row("name-digits", "a name of digits", vm_name="1"),
    Row("name-long", "a name of 200 characters", vm_name="n" * 200),
    Row("path-spaces", "a directory with spaces", directory="my images"),
    Row("path-comma", "a directory with commas", directory="a,b,,c"),
    Row("path-colon", "a directory with a colon", directory="nbd:images"),
    Row("path-unicode", "a directory with letters of other scripts", directory="Bilder-東京"),
    Row("path-quotes", "a directory with quotes and a percent sign", directory="""it's "100%"""),
    Row("file-no-suffix", "an image without a suffix", (Image(file="image"),)),
    Row("file-wrong-suffix", "a qcow2 image that is called .raw", (Image(file="image.raw"),)),
    Row("file-snapshot-suffix", "an image called like an overlay of virsh", (Image(file="vm.1700000000"),)),
    Row("file-long", "a file name of 246 bytes", (Image(file=_LONG),)),
)
