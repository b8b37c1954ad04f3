"""Which files an image may name, as a table: what speaks for the name, and what comes of it."""

from __future__ import annotations

import itertools

import pytest

from vmkeep.planning.imagetrust import NamedFile, Role, doubt_of, doubt_of_format, doubt_of_name


def _named(**facts: object) -> NamedFile:
    plain: dict[str, object] = {"listed": False, "reachable": False, "beside": False, "used_by": None}
    return NamedFile(image="/vm/a.qcow2", path="/x/y", **{"role": Role.BACKING, **plain, **facts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "allowed"),
    [
        ({}, False),
        ({"listed": True}, True),
        ({"reachable": True}, True),
        ({"beside": True}, True),
        ({"beside": True, "used_by": "b"}, False),
        ({"reachable": True, "used_by": "b"}, True),
        ({"listed": True, "used_by": "b"}, True),
        ({"role": Role.DATA}, False),
        ({"role": Role.DATA, "reachable": True}, True),
        ({"role": Role.DATA, "beside": True}, True),
        ({"role": Role.DATA, "listed": True}, True),
        ({"role": Role.DATA, "reachable": True, "used_by": "b"}, False),
        ({"role": Role.DATA, "listed": True, "used_by": "b"}, False),
    ],
)
def test_file_is_followed_on_grounds_alone(facts: dict[str, object], allowed: bool) -> None:
    doubt = doubt_of(_named(**facts))
    assert (doubt is None) is allowed
    if doubt is not None:
        assert "/vm/a.qcow2" in doubt.message
        assert "/x/y" in doubt.message
        assert doubt.hint


def test_more_grounds_never_make_a_file_less_trusted() -> None:
    names = ("listed", "reachable", "beside")
    for role, used_by in itertools.product(Role, (None, "b")):
        for given in itertools.product((False, True), repeat=3):
            facts = dict(zip(names, given, strict=True))
            if doubt_of(_named(role=role, used_by=used_by, **facts)) is None:
                for name in names:
                    assert doubt_of(_named(role=role, used_by=used_by, **{**facts, name: True})) is None


@pytest.mark.parametrize(
    "name",
    [
        "nbd:localhost:10809",
        "nbd+unix:///x?socket=/s",
        'json:{"driver":"file"}',
        "file:/etc/shadow",
        "fat:/root",
        "a:b",
    ],
)
def test_name_that_is_no_plain_file_name_is_refused(name: str) -> None:
    for role in Role:
        doubt = doubt_of_name("/vm/a.qcow2", role, name)
        assert doubt is not None
        assert "no file" in doubt.message


@pytest.mark.parametrize("name", ["base.qcow2", "/vm/a:b.qcow2", "../x", "./a:b", "-rf"])
def test_plain_name_passes_to_the_other_rules(name: str) -> None:
    assert doubt_of_name("/vm/a.qcow2", Role.BACKING, name) is None


@pytest.mark.parametrize("image_format", [None, "vmdk", "vhdx", "vdi", "qed", "json", "nbd", ""])
def test_format_that_is_not_named_or_may_name_files_is_refused(image_format: str | None) -> None:
    assert doubt_of_format("/vm/a.qcow2", "/x", image_format) is not None


def test_format_that_libvirt_gives_the_file_is_followed() -> None:
    assert doubt_of_format("/vm/a.qcow2", "/x", "vmdk", "vmdk") is None
    assert doubt_of_format("/vm/a.qcow2", "/x", "vmdk", "raw") is not None
    assert doubt_of_format("/vm/a.qcow2", "/x", None, "raw") is not None  # who asks takes libvirt's word then


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "luks"])
def test_format_that_is_read_by_us_is_followed(image_format: str) -> None:
    assert doubt_of_format("/vm/a.qcow2", "/x", image_format) is None
