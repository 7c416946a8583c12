"""The world outside the services, which fails as it does. The same orders fail in every run."""

from __future__ import annotations

from zlib import crc32

# One order in so many meets a payment gateway, or a carrier, that does not answer: at the first attempt, or the first
# two.
GATEWAY_FAILS_ONE_IN = 12
CARRIER_FAILS_ONE_IN = 20


class GatewayTimeout(Exception):
    """The payment gateway did not answer. Later it will."""


class CarrierUnavailable(Exception):
    """The carrier takes no parcels at the moment."""


class InvoiceMismatch(Exception):
    """The amount to be charged is not the amount on the invoice. No repetition mends that."""


def _fails(name: str, message_id: str, attempt: int, one_in: int) -> bool:
    draw = crc32(f"{name}/{message_id}".encode())
    return draw % one_in == 0 and attempt <= 1 + draw // one_in % 2


def charge_card(message_id: str, attempt: int) -> None:
    """Charge a card. Raises `GatewayTimeout`."""
    if _fails("gateway", message_id, attempt, GATEWAY_FAILS_ONE_IN):
        raise GatewayTimeout("no answer within 3 s")


def book_parcel(message_id: str, country: str, attempt: int) -> None:
    """Book a parcel with the carrier of a country. Raises `CarrierUnavailable`."""
    if _fails(f"carrier {country}", message_id, attempt, CARRIER_FAILS_ONE_IN):
        raise CarrierUnavailable("503, try again")
