"""What libvirt would answer, without asking it."""

from __future__ import annotations

from enum import IntEnum

from vmkeep.xmltext import bounded


class LibvirtError(IntEnum):
    """The error numbers of libvirt (virErrorNumber) that moments can meet; the name is libvirt's own."""

    VIR_ERR_INTERNAL_ERROR = 1
    VIR_ERR_INVALID_ARG = 8
    VIR_ERR_OPERATION_FAILED = 9
    VIR_ERR_NO_NAME = 21
    VIR_ERR_XML_ERROR = 27
    VIR_ERR_XML_DETAIL = 35
    VIR_ERR_CONFIG_UNSUPPORTED = 67
    VIR_ERR_NO_DOMAIN_SNAPSHOT = 72
    VIR_ERR_OVERFLOW = 82
    VIR_ERR_XML_INVALID_SCHEMA = 92
    VIR_ERR_NO_DOMAIN_CHECKPOINT = 103


class MomentError(ValueError):
    """A definition that libvirt would refuse.

    ``code`` and ``libvirt_name`` are libvirt's error number and its name, ``element`` the XML element or the
    disk at fault, ``message`` says what is wrong and what would be right.
    """

    def __init__(self, error: LibvirtError, element: str, message: str) -> None:
        message, element = bounded(message), bounded(element)
        super().__init__(f"{message} (at {element})" if element else message)
        self.code = int(error)
        self.libvirt_name = error.name
        self.element = element
        self.message = message


def schema_error(element: str, message: str) -> MomentError:
    """Return the error of a document that libvirt's schema refuses."""
    return MomentError(LibvirtError.VIR_ERR_XML_INVALID_SCHEMA, element, message)


def xml_error(element: str, message: str) -> MomentError:
    """Return the error of a well-formed document that says what cannot be."""
    return MomentError(LibvirtError.VIR_ERR_XML_ERROR, element, message)


def unsupported(element: str, message: str) -> MomentError:
    """Return the error of a well-formed request that the domain cannot meet."""
    return MomentError(LibvirtError.VIR_ERR_CONFIG_UNSUPPORTED, element, message)
