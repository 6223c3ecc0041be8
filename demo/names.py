"""Names of invented cities, clubs and leagues, without end."""

from __future__ import annotations

from typing import Final

import numpy as np

from demo.wording import pick

CITIES: Final = tuple(
    """
    Harbor Ridgeway Ashford Brookfield Calder Dunmore Eastwick Fairmont Glenrock Hartwell Irondale Juniper
    Kingsport Lakeview Marlow Northgate Oakridge Pinehurst Quarry Riverton Stonebridge Thornton Upland
    Valmont Westbury Yarrow Zephyr Alder Bayside Cedar Delmar Elkhorn Foxborough Granite Hollis Ingleside
    Jasper Kenwood Linden Milford Newbridge Orchard Prescott Quincy Redwood Summit Tidewater Union Verdant
    Wexford Ainsley Birchwood Clearwater Dover Emerson Falmouth Greystone Highland Ironwood Jamestown
    Kelso Langley Merrick Norwood Orient Pembroke Rosedale Sterling Trenton Underhill Vista Waverly
    Bridgeton Copper Drayton Elmsford Fenwick Garland Hadley Belmont Colby Easton
    """.split()  # noqa: SIM905 (eighty lines otherwise)
)
BEFORE: Final = (
    "North",
    "New",
    "Port",
    "South",
    "Fort",
    "Lake",
    "East",
    "Mount",
    "West",
    "Saint",
    "Old",
    "Upper",
)
AFTER: Final = ("City", "Falls", "Beach", "Springs", "Hills", "Park", "Bay", "Junction")

NICKNAMES: Final[dict[str, tuple[str, ...]]] = {
    "star": ("Stars", "Rangers", "Lone Stars"),
    "crown": ("Kings", "Royals", "Monarchs"),
    "bolt": ("Bolts", "Thunder", "Chargers"),
    "ball": ("Rovers", "Hoopers", "Globes"),
    "anchor": ("Mariners", "Anchors", "Admirals"),
    "tree": ("Timbers", "Evergreens", "Foresters"),
    "mountain": ("Peaks", "Climbers", "Summits"),
    "sun": ("Suns", "Blaze", "Solars"),
    "wave": ("Waves", "Surf", "Breakers"),
    "axe": ("Lumberjacks", "Axemen", "Choppers"),
    "moon": ("Moons", "Lunars", "Night Owls"),
    "heart": ("Hearts", "Aces", "Valiants"),
}
GENERAL_NICKNAMES: Final = (
    "Comets",
    "United",
    "Wanderers",
    "Pioneers",
    "Athletics",
    "Rockets",
    "Bandits",
    "Flyers",
)

REGIONS: Final = (
    "Atlantic",
    "Prairie",
    "Coastal",
    "Northern",
    "Valley",
    "Pacific",
    "Central",
    "Highland",
    "Southern",
)
SPORTS: Final = (
    "Hockey League",
    "Football Association",
    "Basketball League",
    "Baseball League",
    "Soccer Conference",
)


def city_name(number: int) -> str:
    """The city of this number; different numbers give different cities."""
    rank, place = divmod(number, len(CITIES))
    words = [CITIES[place]]
    # Each further round adds a word in front, behind, or both: a number written with these words as digits.
    while rank:
        rank, digit = divmod(rank - 1, len(BEFORE) * (len(AFTER) + 1))
        after, before = divmod(digit, len(BEFORE))
        words = [BEFORE[before], *words, *AFTER[after - 1 : after]] if after else [BEFORE[before], *words]
    return " ".join(words)


def nickname(rng: np.random.Generator, charge: str) -> str:
    """A nickname that suits the charge, or a general one."""
    return pick(rng, NICKNAMES[charge]) if rng.random() < 0.7 else pick(rng, GENERAL_NICKNAMES)


def league_name(number: int) -> str:
    """The league of this number; different numbers give different leagues."""
    region = REGIONS[number % len(REGIONS)]
    sport = SPORTS[number % len(SPORTS)]
    # 9 regions and 5 sports have no common factor, so the pairs repeat only after 45 leagues.
    rank = number // (len(REGIONS) * len(SPORTS))
    return f"{region} {sport}" if rank == 0 else f"{region} {sport} {rank + 1}"
