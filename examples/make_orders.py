#!/usr/bin/env python3
"""Writes orders.jsonl, the demo's input: a fortnight of a tea shop's orders. Always the same ones.

python3 examples/make_orders.py > src/atleastonce/cli/demo/orders.jsonl
"""

from __future__ import annotations

import json
import random
import sys
from datetime import UTC, datetime, timedelta

SEED = 20260302
ORDERS = 10_000
FIRST_ID = 100_001
BEGIN = datetime(2026, 3, 2, 6, 0, tzinfo=UTC)
MEAN_GAP_SECONDS = 120

SHELF = {  # name: price of one, in cents
    "assam-250g": 1145,
    "chai-masala-200g": 1090,
    "darjeeling-first-flush-100g": 1995,
    "earl-grey-250g": 1190,
    "genmaicha-150g": 1235,
    "jasmine-pearls-100g": 1679,
    "lapsang-100g": 890,
    "matcha-30g": 2450,
    "oolong-milk-100g": 1549,
    "peppermint-100g": 495,
    "rooibos-250g": 785,
    "sencha-100g": 1285,
    "strainer-steel": 649,
    "teapot-glass-1l": 3299,
    "tin-200g": 575,
}
COUNTRIES = {"DE": 30, "FR": 18, "NL": 12, "IT": 10, "ES": 9, "AT": 7, "BE": 6, "IE": 4, "PT": 4}
SHIPPING_CENTS = {"DE": 390, "AT": 490, "NL": 490, "BE": 490}
SHIPPING_ELSEWHERE_CENTS = 690
FREE_SHIPPING_FROM_CENTS = 5000
CANCELLED_SHARE = 0.006


def order(dice: random.Random, number: int, placed: datetime) -> dict[str, object]:
    """One order; the total is what the items and the shipping cost."""
    wanted = dice.sample(sorted(SHELF), k=dice.choices([1, 2, 3, 4], weights=[50, 30, 14, 6])[0])
    items = [
        {"sku": sku, "quantity": dice.choices([1, 2, 3], weights=[75, 20, 5])[0], "price": SHELF[sku] / 100}
        for sku in wanted
    ]
    country = dice.choices(list(COUNTRIES), weights=list(COUNTRIES.values()))[0]
    cents = sum(SHELF[str(item["sku"])] * int(str(item["quantity"])) for item in items)
    if cents < FREE_SHIPPING_FROM_CENTS:
        cents += SHIPPING_CENTS.get(country, SHIPPING_ELSEWHERE_CENTS)
    return {
        "order_id": FIRST_ID + number,
        "placed_at": placed.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "customer_id": f"c-{int(dice.paretovariate(1.1) * 37) % 4200:04d}",
        "country": country,
        "status": "cancelled" if dice.random() < CANCELLED_SHARE else "placed",
        "items": items,
        "total": cents / 100,
    }


def main() -> None:
    dice = random.Random(SEED)
    placed = BEGIN
    for number in range(ORDERS):
        placed += timedelta(seconds=1 + dice.expovariate(1 / MEAN_GAP_SECONDS))
        sys.stdout.write(json.dumps(order(dice, number, placed), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
