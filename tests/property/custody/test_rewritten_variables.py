"""What is written into a store of UEFI variables is read out of it again, and nothing else becomes another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.property.foreign import damaged
from tests.unit.custody.stores import GLOBAL, IMAGE_SECURITY, X509, Made, make_signatures, make_store
from tests.unit.custody.test_variables import certificate
from vmkeep.custody.certificates import parse_certificates
from vmkeep.custody.enrolment import Enrolled, certificates_of_2023, enrol, named_certificate
from vmkeep.custody.nvram import tell_of_nvram
from vmkeep.custody.rewriting import NewContent, rewrite
from vmkeep.custody.variables import read_layout, read_variables

CERTIFICATE = certificate()
names = st.sampled_from(["A", "B", "db", "KEK", "Boot0000", "a longer name"])
vendors = st.sampled_from([GLOBAL, IMAGE_SECURITY])
contents = st.binary(max_size=300)
variables = st.builds(
    Made, names, contents, vendors, st.sampled_from([0x3F, 0x3F, 0x3E, 0x3C, 0x3D, 0x7F]), st.integers(0, 0x7F)
)
stores = st.builds(
    lambda made, plain: make_store(made, plain=plain, size_bytes=0x4000),
    st.lists(variables, max_size=12),
    st.booleans(),
)
changes = st.lists(st.builds(NewContent, names, vendors, st.binary(max_size=2500), st.just(7)), max_size=4)
STORE = make_store(
    [
        Made("PK", make_signatures(X509, [CERTIFICATE])),
        Made("db", make_signatures(X509, [CERTIFICATE]), IMAGE_SECURITY),
        Made("Boot0000", b"\1\0\0\0\4\0A\0\0\0\x7f\xff\4\0"),
        Made("BootOrder", b"\0\0\1\0"),
    ],
    size_bytes=0x2000,
)


@given(stores, changes)
def test_written_contents_are_read_back_and_all_others_stay(content: bytes, wanted: list[NewContent]) -> None:
    before = read_variables(content)
    made = rewrite(content, wanted)
    if isinstance(made, str):
        assert made == "its variables would need more room than the store has"
        return
    after = read_variables(made)
    assert after.problem is None
    old, new = ({each.key: each for each in store.variables} for store in (before, after))
    last = {change.key: change for change in wanted}
    assert new.keys() == old.keys() | last.keys()
    for key, variable in new.items():
        expected = last[key].content if key in last else old[key].content
        assert variable.content == expected
        assert variable.attributes == (old[key].attributes if key in old else 7)
    layout = read_layout(content)
    assert (made[: layout.first], made[layout.end :]) == (content[: layout.first], content[layout.end :])
    assert read_layout(made).has_shape_of(layout)
    assert rewrite(made, wanted) == made


@given(damaged(STORE) | st.binary(max_size=200))
def test_any_bytes_become_a_whole_store_or_a_reason(content: bytes) -> None:
    told = tell_of_nvram(content)
    for entry in told.booting.entries:
        assert (entry.description + entry.target).isprintable()
    made = enrol(content, (named_certificate("own", CERTIFICATE[:-1], "db"), *certificates_of_2023(content)[0]))
    if isinstance(made, Enrolled):
        assert len(made.content) == len(content)
        assert read_variables(made.content).problem is None
    else:
        assert made


@given(damaged(CERTIFICATE) | st.binary(max_size=100) | st.just(b"-----BEGIN CERTIFICATE-----\n\n"))
def test_any_file_of_certificates_has_some_or_a_reason(content: bytes) -> None:
    found = parse_certificates(content)
    assert found
    if not isinstance(found, str):
        assert all(subject.isprintable() for subject, _ in found)
