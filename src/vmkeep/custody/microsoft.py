"""Microsoft's certificates for Secure Boot: those of 2011, which ended in 2026, and those of 2023. No I/O.

What they are for, and which follows which: Microsoft, "Windows Secure Boot certificate expiration and CA updates" and
"Windows Secure Boot Key Creation and Management Guidance". The certificates of 2023 are public, and are here byte for
byte as Microsoft publishes them; a test holds each against its fingerprint.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from vmkeep.values import dataclass

OWNER: Final = "77fa9abd-0359-4d32-bd60-28f4e78f784b"
"""Microsoft's GUID as the owner of what lies in db and KEK."""

KEK_2023: Final = "3cd3f0309edae228767a976dd40d9f4affc4fbd5218f2e8cc3c9dd97e8ac6f9d"
WINDOWS_2023: Final = "076f1fea90ac29155ebf77c17682f75f1fdd1be196da302dc8461e350a9ae330"
UEFI_2023: Final = "f6124e34125bee3fe6d79a574eaa7b91c0e7bd9d929c1a321178efd611dad901"
OPTION_ROM_2023: Final = "e5be3e64c6e66a281457ecdece0d6d0787577aad2a3a0144262c10c14ba8d8f1"
_KEK_2011: Final = "a1117f516a32cefcba3f2d1ace10a87972fd6bbe8fe0d0b996e09e65d802a503"
_WINDOWS_2011: Final = "e8e95f0733a55e8bad7be0a1413ee23c51fcea64b3c8fa6a786935fddcc71961"
_UEFI_2011: Final = "48e99b991f57fc52f76149599bff0a58c47154229b9f8d603ac40d3500248507"


@dataclass(frozen=True, slots=True)
class MicrosoftCertificate:
    """A certificate by its SHA-256. ``database`` is where it belongs, ``follows`` what it takes the place of."""

    subject: str
    sha256: str
    database: str
    year: int
    follows: str = ""

    @property
    def content(self) -> bytes:
        """The certificate in DER; of those of 2023 only."""
        return base64.b64decode(_CONTENTS[self.sha256])


CERTIFICATES: Final = (
    MicrosoftCertificate("Microsoft Corporation KEK CA 2011", _KEK_2011, "KEK", 2011),
    MicrosoftCertificate("Microsoft Windows Production PCA 2011", _WINDOWS_2011, "db", 2011),
    MicrosoftCertificate("Microsoft Corporation UEFI CA 2011", _UEFI_2011, "db", 2011),
    MicrosoftCertificate("Microsoft Corporation KEK 2K CA 2023", KEK_2023, "KEK", 2023, _KEK_2011),
    MicrosoftCertificate("Windows UEFI CA 2023", WINDOWS_2023, "db", 2023, _WINDOWS_2011),
    MicrosoftCertificate("Microsoft UEFI CA 2023", UEFI_2023, "db", 2023, _UEFI_2011),
    MicrosoftCertificate("Microsoft Option ROM UEFI CA 2023", OPTION_ROM_2023, "db", 2023, _UEFI_2011),
)
"""Those of 2011, and of 2023 what follows each: of the one that signs what others make, two."""


class Generation(StrEnum):
    """Of which years Microsoft's certificates in KEK and db are."""

    NONE = "none"
    OF_2011 = "2011"
    OF_2023 = "2023"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class MicrosoftKeys:
    """Microsoft's certificates in a store.

    ``lacking`` are those of 2023 that are not there although what they follow is, by subject.
    """

    generation: Generation
    lacking: tuple[str, ...] = ()


def microsoft_keys(held: Mapping[str, frozenset[str]]) -> MicrosoftKeys:
    """Return which of Microsoft's certificates are there. ``held`` are the fingerprints in a database by its name."""
    there = {each for each in CERTIFICATES if each.sha256 in held.get(each.database, frozenset())}
    years = {each.year for each in there}
    generation = {
        frozenset(): Generation.NONE,
        frozenset({2011}): Generation.OF_2011,
        frozenset({2023}): Generation.OF_2023,
    }.get(frozenset(years), Generation.BOTH)
    return MicrosoftKeys(generation, tuple(each.subject for each in successors(held)))


def successors(held: Mapping[str, frozenset[str]]) -> tuple[MicrosoftCertificate, ...]:
    """Return the certificates of 2023 that a store lacks and whose predecessor it trusts, in the same database."""
    return tuple(
        each
        for each in CERTIFICATES
        if each.follows
        and each.follows in held.get(each.database, frozenset())
        and each.sha256 not in held.get(each.database, frozenset())
    )


def known_certificate(sha256: str) -> MicrosoftCertificate | None:
    """Return Microsoft's certificate with a fingerprint."""
    return next((each for each in CERTIFICATES if each.sha256 == sha256), None)


_CONTENTS: Final[Mapping[str, str]] = {
    KEK_2023: (
        "MIIFsjCCA5qgAwIBAgITMwAAABMUFrhhbYKCSwAAAAAAEzANBgkqhkiG9w0BAQsFADBaMQswCQYDVQQGEwJVUzEeMBwGA1UEChMVTWljcm9zb2Z0"
        "IENvcnBvcmF0aW9uMSswKQYDVQQDEyJNaWNyb3NvZnQgUlNBIERldmljZXMgUm9vdCBDQSAyMDIxMB4XDTIzMDMwMjIwMjEzNVoXDTM4MDMwMjIw"
        "MzEzNVowXDELMAkGA1UEBhMCVVMxHjAcBgNVBAoTFU1pY3Jvc29mdCBDb3Jwb3JhdGlvbjEtMCsGA1UEAxMkTWljcm9zb2Z0IENvcnBvcmF0aW9u"
        "IEtFSyAySyBDQSAyMDIzMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA416Ii3MswwrE6fXOgS3xD/EmNTfRSVNxsVuTUq/hFd/eizm9"
        "r0xldVPl2goymC8zJrYrvpSZn+zawo4FNJITD2O/dKJyqCl+nzIhKQhZxHfEKpJMh7YDN+ua4sPJtEghw2GU6hdRsecU4iRjLtXyxqXyol4facZR"
        "Dacp+1IKm+OI6Gj/u/qSaa/EFv9d5V/g3+xmVQthwqw7IG7ftA3rK8jQwjROgpY57vExhQQ979Z2+8PKwdWMLwsQKJtImrAQFKTZlOVoW81u53rs"
        "vKBJuKlT2E0vsnvI2ryy5/yrcBB3lUVJ/a3SPxfLZpryfTbdCiziwIchLZPbCJbS6FxU4QIDAQABo4IBbTCCAWkwDgYDVR0PAQH/BAQDAgGGMBAG"
        "CSsGAQQBgjcVAQQDAgEAMB0GA1UdDgQWBBTgq3K8lj7/uGabfRBaQz5cQlSHXzAZBgkrBgEEAYI3FAIEDB4KAFMAdQBiAEMAQTAPBgNVHRMBAf8E"
        "BTADAQH/MB8GA1UdIwQYMBaAFIREhgYAmD8sqrPFifOsLsnmnQkDMGUGA1UdHwReMFwwWqBYoFaGVGh0dHA6Ly93d3cubWljcm9zb2Z0LmNvbS9w"
        "a2lvcHMvY3JsL01pY3Jvc29mdCUyMFJTQSUyMERldmljZXMlMjBSb290JTIwQ0ElMjAyMDIxLmNybDByBggrBgEFBQcBAQRmMGQwYgYIKwYBBQUH"
        "MAKGVmh0dHA6Ly93d3cubWljcm9zb2Z0LmNvbS9wa2lvcHMvY2VydHMvTWljcm9zb2Z0JTIwUlNBJTIwRGV2aWNlcyUyMFJvb3QlMjBDQSUyMDIw"
        "MjEuY3J0MA0GCSqGSIb3DQEBCwUAA4ICAQCFAgYS+meuTzmpuDTcXSp4GXs47pyCjxviPD0yCl6/WAbnb/iNGKgbhPWbyq2LCEQOJo0s2F9uIyUH"
        "+ltMJi52MUMubujIMcFK0vICt6bxdeSW7QbiypV4RKgzdtQrTde83Ic7q00prZaJt9XCj6tGw12z/e2lnvV2tyuF/5ihn2scmz737g4Xo/02L+HN"
        "KJgcQJkmygONpjXq0gqnixauIQEAHicPtw6yQjFWLub4juoMNPBO33AwaQTRz9OcZEZvzCHNy+8FMrsIptifRThdTtKckonpc+R6CDUeT6bCums+"
        "tx9UNEn6tHrL2qAfWYErKvaIJrD6bPLrwdiuQeFv/L8T6G4U5+fHA4tAmRA4Bm1wvQHI3o1WHTgPTyOoJUDeuygtQ6+kvCCDtQb5BSGfO7l5DXBr"
        "U8B1whsQE7Pkbwmoz9G3DnFct8mP5RzwE1XZk7muXT/KC7BZakVKw+HjJ3gNFoH8WC2xQboYDc/w76sIHk/4/Mb9S90d7zAlUDmj3/4/ufrrlpfQ"
        "zfkEJvsNSBkI2OGTwVDHbm3Y0GuOlXJkUMntVYluwUuiBtQytaltZQF68VJXGAUwXLgoZhG3evBxToZhYHptVsdbCT6i79QOnpLTH5n2nbEdeHhr"
        "/+gqBK94Zz7wKgun4F0B6YeZNTCQ7ddFa5zM5qLk5hen3Q=="
    ),
    WINDOWS_2023: (
        "MIIFqjCCA5KgAwIBAgITMwAAABqIi5gAViKEwQAAAAAAGjANBgkqhkiG9w0BAQsFADCBiDELMAkGA1UEBhMCVVMxEzARBgNVBAgTCldhc2hpbmd0"
        "b24xEDAOBgNVBAcTB1JlZG1vbmQxHjAcBgNVBAoTFU1pY3Jvc29mdCBDb3Jwb3JhdGlvbjEyMDAGA1UEAxMpTWljcm9zb2Z0IFJvb3QgQ2VydGlm"
        "aWNhdGUgQXV0aG9yaXR5IDIwMTAwHhcNMjMwNjEzMTg1ODI5WhcNMzUwNjEzMTkwODI5WjBMMQswCQYDVQQGEwJVUzEeMBwGA1UEChMVTWljcm9z"
        "b2Z0IENvcnBvcmF0aW9uMR0wGwYDVQQDExRXaW5kb3dzIFVFRkkgQ0EgMjAyMzCCASIwDQYJKoZIhvcNAQEBBQADggEPADCCAQoCggEBALyyNdFU"
        "ebSPzIEqbrMS1pOXMHw4XL95khkKDy0K/r/gqNgyP9Krb2+BwU0XaUXPhYAno3yzMcylp035Q9BaL9cYG9JYlgU5o5W3vN15waDPj+JTHismYqgc"
        "rjYeT6HfuRO6DCW7JGVnAaodQRC3NsFrLrVsENNOltCfKqHx7aEVC4KVxf9jihO1kjQeMV5hEa5dzPEQ5kx5yXKyNIqCVi2rD3zAT5OOWXVBhqwJ"
        "EAnyUWVQtfUhsyY5jarEkbPcrGQjBs01Xw1CSZxPDc6Ag4JZ/t9LROFAyD1jts+0Qg05XNJCEAwIwnTrHNxuvAqsmLvM+h48p4MWxdsC2tmW32sC"
        "AwEAAaOCAUYwggFCMA4GA1UdDwEB/wQEAwIBhjAQBgkrBgEEAYI3FQEEAwIBADAdBgNVHQ4EFgQUrvxfu74FXY+NqlhUc0mUF6taUnIwGQYJKwYB"
        "BAGCNxQCBAweCgBTAHUAYgBDAEEwDwYDVR0TAQH/BAUwAwEB/zAfBgNVHSMEGDAWgBTV9lbLj+iiXGJo0T2UkFvXzpoYxDBWBgNVHR8ETzBNMEug"
        "SaBHhkVodHRwOi8vY3JsLm1pY3Jvc29mdC5jb20vcGtpL2NybC9wcm9kdWN0cy9NaWNSb29DZXJBdXRfMjAxMC0wNi0yMy5jcmwwWgYIKwYBBQUH"
        "AQEETjBMMEoGCCsGAQUFBzAChj5odHRwOi8vd3d3Lm1pY3Jvc29mdC5jb20vcGtpL2NlcnRzL01pY1Jvb0NlckF1dF8yMDEwLTA2LTIzLmNydDAN"
        "BgkqhkiG9w0BAQsFAAOCAgEAn8m2/27hnDtV9v6LOd1hBG/QrWPNF3ZKqEOJjfjG8oxekOHkaKUV7LjTYAxAVx/7XjVyYd6XMWx5oPUWrksc7QEM"
        "7/dXD0IwGGn4oaMul5K4vhv+K4ZeQkIRj45wTZCn/QFj8mS/m+J7CIHPSfI3F9/x+XLTwx3DkEVN5oAGvf3lamnOs35OMVuEc6jocj8nNcl8IM4A"
        "m0/gTLQ2acv3NBERdBJ6qIwugWymUK0Z+qhGRW+xZ3PDa+NA6CppjyQQ4SlujRaI7o5/ZpMCb1ueBIzMgRytl1TxGC5+UpC8Ud4qDq5m6rxkbqCR"
        "ZOQvEqi852u6xxubeRpkZvFDtNHDRiE4gXlM+vAxDdN5/3oSpR3Z3ayiD3GC95P/XKFhrmXyFIHteVqah+pge8uzT3U0yrqh76L2ooBFoYsngc3V"
        "dzg+yk7dKOpYusWgKd6GjIj8lSdR3avT0FsNd8dsj1XX1KIOW+Q0RhQWHeMc1m2ZrUzscXMvq86ytCneVTBTOToyi/DqnIgSOwVoGb/Ph1IQ+9YT"
        "YPNBZPQIV4HLnRGljvTlJ/WjOuzkPUq3zvmIDZ+9ym3SSrxYdo4yBJRu3fTPbUdtwtdq3Idx6qS/72eXnLjHgDYqKlnJwAynRKBztYzPOFqu+LuG"
        "lfBErWZ6M+1x5EWHg+WnzqJA0HLSSAD6+Ro="
    ),
    UEFI_2023: (
        "MIIFpDCCA4ygAwIBAgITMwAAABY2vzaJnxV1zAAAAAAAFjANBgkqhkiG9w0BAQsFADBaMQswCQYDVQQGEwJVUzEeMBwGA1UEChMVTWljcm9zb2Z0"
        "IENvcnBvcmF0aW9uMSswKQYDVQQDEyJNaWNyb3NvZnQgUlNBIERldmljZXMgUm9vdCBDQSAyMDIxMB4XDTIzMDYxMzE5MjE0N1oXDTM4MDYxMzE5"
        "MzE0N1owTjELMAkGA1UEBhMCVVMxHjAcBgNVBAoTFU1pY3Jvc29mdCBDb3Jwb3JhdGlvbjEfMB0GA1UEAxMWTWljcm9zb2Z0IFVFRkkgQ0EgMjAy"
        "MzCCASIwDQYJKoZIhvcNAQEBBQADggEPADCCAQoCggEBAL0iKq7vGjGFE3hRp5v9/HjRY7gam2P1EgbbS0E1am+r9WoEzJfPu9QICRphOg3ms6BG"
        "/wmt3oAk3BKA8l/ZFu3iQp3NL01hAmGKHEsdGGI5hpdxrT5/XXETS+kqAMG+1bcAn15lsiwa/3Tt6oPSOYkzNXN9oKL6QORmUFiq/IfoXCCDNOyr"
        "4gvFXz7/SCsRkSbvGG5XxZ8Yc5nv4Wp0K7svf1COHdo9drYE5cwuEMeDG4Oj5KUTE3FuM3ijqDzsSCZex8ZeDYeaqsxVNIGtnZD15pZjpugHIBfI"
        "kx7SrqTcrn1Zv4heYgyuW/IpQFYdJkDehaatVtHPVUd2X5w52wMCAwEAAaOCAW0wggFpMA4GA1UdDwEB/wQEAwIBhjAQBgkrBgEEAYI3FQEEAwIB"
        "ADAdBgNVHQ4EFgQUgaprMkTJNbzg1mKK85gnQh4ySX0wGQYJKwYBBAGCNxQCBAweCgBTAHUAYgBDAEEwDwYDVR0TAQH/BAUwAwEB/zAfBgNVHSME"
        "GDAWgBSERIYGAJg/LKqzxYnzrC7J5p0JAzBlBgNVHR8EXjBcMFqgWKBWhlRodHRwOi8vd3d3Lm1pY3Jvc29mdC5jb20vcGtpb3BzL2NybC9NaWNy"
        "b3NvZnQlMjBSU0ElMjBEZXZpY2VzJTIwUm9vdCUyMENBJTIwMjAyMS5jcmwwcgYIKwYBBQUHAQEEZjBkMGIGCCsGAQUFBzAChlZodHRwOi8vd3d3"
        "Lm1pY3Jvc29mdC5jb20vcGtpb3BzL2NlcnRzL01pY3Jvc29mdCUyMFJTQSUyMERldmljZXMlMjBSb290JTIwQ0ElMjAyMDIxLmNydDANBgkqhkiG"
        "9w0BAQsFAAOCAgEAB2ATKlOHEg8a81oUlRfl2NeVVJuLDt2Rpe3HXUdQk0W3lYhfFxlBY3a1grCoxZ2ZFTaJSb4Swmb7gwywgc7lpKvCoJrr9Qc8"
        "/iH4mtwZIQyeJCzRXKIWCkvr7EicsVt02wFkwuOAaqsazXcbajmat7pwRP9nlMWBBvDLgQSTJyGZvYeIFJwicQ4LL1y+uJBUfMAevCubo1YXS5fn"
        "438TNPqwNGub9rIt99h72CDTXKeVTE8q+eceaK/8bI/Ihj2fyNHvTRrI0fb9LXzj6EHB6ifB+44lhlqJphC+zuOPpXvEGqDodZD9IbDBo8UWI148"
        "zi/+jJi/CFz2ucWyPLbMyOx/0nd0y+3zlsmLjRwqiQ+jj73OKoVGmiOij0LAmdbqhR9hGb4WNbd1oJWAZQaH1As1yMSqDs6iCmNgyksrXCcEgq8+"
        "WIN6WthnPxBT9QwW9yZLioC5xR+g3tjTYUQURaf1q5qIF/23lFQCi+S3U6E+jZ5QgqgA4HiUG76zxDAfsg7b8EaQweZX/nzBcLIcS2TZEAMbNPtm"
        "z4JunkCoETfyZYshCa88k2I987yD3T9VkBXSMa8R5/jKoILhuc+zV5PHVTesf0G/H5Y88yaU+djSVSSKirZB8OAWwCOSjHEKTGoNGVX3OpySIZah"
        "1fgKjJ2/yevKiEL8S7Tv/ycwIWE="
    ),
    OPTION_ROM_2023: (
        "MIIFrzCCA5egAwIBAgITMwAAABez7E2PAeJwBQAAAAAAFzANBgkqhkiG9w0BAQsFADBaMQswCQYDVQQGEwJVUzEeMBwGA1UEChMVTWljcm9zb2Z0"
        "IENvcnBvcmF0aW9uMSswKQYDVQQDEyJNaWNyb3NvZnQgUlNBIERldmljZXMgUm9vdCBDQSAyMDIxMB4XDTIzMTAyNjE5MDIyMFoXDTM4MTAyNjE5"
        "MTIyMFowWTELMAkGA1UEBhMCVVMxHjAcBgNVBAoTFU1pY3Jvc29mdCBDb3Jwb3JhdGlvbjEqMCgGA1UEAxMhTWljcm9zb2Z0IE9wdGlvbiBST00g"
        "VUVGSSBDQSAyMDIzMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA0wv+ic3Ntu7c5RqN3MohGg8iLwu1MoQ1wL5vcJNVtEfMSQPC/s+6"
        "MmVktzW9BDtEZC+g8t3hXbrnvTmavctL4YOqG+hvTkyRUkOlxFBVaPXarEiinOw1pwRWaBnisWLUkvSFPzShFWeHIW4fydg1Mrg9y1jKKUNUSn6L"
        "VXsjejq2nUMHBGuaa/TwIP/6pt+inknoVcV1iESspEE6A3y76ZPkbPHteSbHizL3WUklMQBnGAxn+0DFXXY9CYfCLYxfK1oeAQ8zr2UIkE/8ZFuc"
        "o1zWUxtRAZ+Yz8RTxbHfs2hvRUvIRYXIHbie0XdxoNWid4fsZy65hwZG3UFDQGpfLwIDAQABo4IBbTCCAWkwDgYDVR0PAQH/BAQDAgGGMBAGCSsG"
        "AQQBgjcVAQQDAgEAMB0GA1UdDgQWBBRRT7+Tf6RvtXvwevi+2Es7hksXETAZBgkrBgEEAYI3FAIEDB4KAFMAdQBiAEMAQTAPBgNVHRMBAf8EBTAD"
        "AQH/MB8GA1UdIwQYMBaAFIREhgYAmD8sqrPFifOsLsnmnQkDMGUGA1UdHwReMFwwWqBYoFaGVGh0dHA6Ly93d3cubWljcm9zb2Z0LmNvbS9wa2lv"
        "cHMvY3JsL01pY3Jvc29mdCUyMFJTQSUyMERldmljZXMlMjBSb290JTIwQ0ElMjAyMDIxLmNybDByBggrBgEFBQcBAQRmMGQwYgYIKwYBBQUHMAKG"
        "Vmh0dHA6Ly93d3cubWljcm9zb2Z0LmNvbS9wa2lvcHMvY2VydHMvTWljcm9zb2Z0JTIwUlNBJTIwRGV2aWNlcyUyMFJvb3QlMjBDQSUyMDIwMjEu"
        "Y3J0MA0GCSqGSIb3DQEBCwUAA4ICAQBKS4D8cbGH3QaLJBDRdvgQ5GU0obuBCH1w1BUk+ZA7SG9uTiP+hVPsopkfieQ0vtCYr/H4LfNH0bUyZJ7e"
        "csAXfoEgesFfkfVOOqZ7adnQ1vD6gGPFwERn04snYcHl3FGZbiPJKRj+Nb1FIawP+WDiD9FfcA+SK1hOz6xkLwlz7VAIyOGFc0AsMam0tiNLwBk7"
        "/RX408t0VM3au30EhZ9wFXX5t/RhS/7kn0UO9YLpxfN4u6pq4fe7hZIrr0u1J06aySlvDsjSZGObXRQGzHh/5BLdluOcBELsF/qSIafe9WmPILJk"
        "8z8Vo1GvJ2+3YlevdBfsq7HuqFDvr4OCq2EEeT9JjEBWwDyv+ypaGR6q5i5nJCGsM/DXSosKJDAQplI+Hcj8kZyHG/qG4Z5r5QlhdaijOV/in2wO"
        "hSHmvXal6kWDaB4vNr/gaIpCzh+4jeFg5pOK7rpKrbNJTO6jA8mnooZxnIEBZ2kP3oBV1sDecoXARmDwzmAqiAiNnDDrqYtA82ElCeHhgjIEpSn4"
        "WewmtsjXI/AL02xjatov0tOlJZqaXqX9AqXsopCBaD49RY58BbIu6pkBRf0JMJQm10os/n2CRDNDVctaQ9KSkv5OR8ZJPzUbIZxq2oL8ZDf7J+r0"
        "MN9l7ND8UAE4auzcUfb17psmzO5t/i9WDjroOCKOqg=="
    ),
}
